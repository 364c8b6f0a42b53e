"""Metrics count and time the work of a server."""

from polyvec.server.api_keys import ApiKey, ApiKeys, hash_key
from tests.server.conftest import MODEL, TEXTS, serving


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


def test_usage_is_counted_by_key_and_shown_to_its_owner_and_the_operator():
    """A key sees its own usage; one that is marked sees all. Refused requests count for nobody."""
    known = [ApiKey(name, hash_key(name)) for name in ("alice", "bob")]
    known.append(ApiKey("operator", hash_key("operator"), sees_all_usage=True))
    with serving(api_keys=ApiKeys(known)) as server:

        def headers(key):
            return {"authorization": f"Bearer {key}"}

        def usage(key):
            lines = server.http.get("/metrics", headers=headers(key)).text.splitlines()
            pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("polyvec_key_")]
            return {name: float(value) for name, value in pairs}

        body = {"model": MODEL, "input": TEXTS}
        answers = [
            server.http.post("/v1/embeddings", json=body, headers=headers(key))
            for key in ("alice", "alice", "bob", "unknown")
        ]
        tokens = answers[0].json()["usage"]["total_tokens"]
        alice = {
            'polyvec_key_requests_total{key="alice"}': 2.0,
            'polyvec_key_tokens_total{key="alice"}': 2.0 * tokens,
        }
        assert usage("alice") == alice
        seen = usage("operator")
        assert seen == alice | {
            'polyvec_key_requests_total{key="bob"}': 1.0,
            'polyvec_key_tokens_total{key="bob"}': float(tokens),
            'polyvec_key_requests_total{key="operator"}': 0.0,
            'polyvec_key_tokens_total{key="operator"}': 0.0,
        }
