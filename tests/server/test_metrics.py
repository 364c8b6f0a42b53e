"""Metrics count and time the work of a server."""

from tests.server.conftest import TEXTS


def test_every_stage_is_timed(server):
    before = server.read_metrics()
    assert server.embed(TEXTS).status_code == 200
    after = server.read_metrics()
    for stage in ("request", "tokenise", "queue", "inference", "serialise"):
        name = f"polyvec_{stage}_seconds"
        assert after[f"{name}_count"] > before[f"{name}_count"], stage
        assert after[f"{name}_sum"] > before[f"{name}_sum"], stage
    assert after["polyvec_texts_total"] - before["polyvec_texts_total"] == len(TEXTS)
    assert after["polyvec_ready"] == 1 and "polyvec_queue_tokens" in after
