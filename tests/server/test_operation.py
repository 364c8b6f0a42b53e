"""What those who run the server see and choose: log, metrics, cache, engines, models, origins."""

import json
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from polyvec import Encoder
from polyvec.server.cache import ENTRY_OVERHEAD_BYTES, VectorCache, cache_key
from polyvec.server.limits import Limits
from polyvec.server.run import make_service
from tests.processes import wait_for
from tests.server.conftest import MODEL, check_error, serving
from tests.server.faults import SLOW, faulty_engine

TEXTS = ["Where does the cat sleep?", "Brot backen", "Le pain doit refroidir."]


def read_metrics(server):
    lines = server.http.get("/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def test_every_request_has_a_line_in_the_log_without_its_text(server, caplog):
    def mine():
        # A line is written after its answer has left, so another test's may come now.
        lines = [json.loads(message) for message in caplog.messages]
        return [line for line in lines if line["request_id"].startswith("mine-")]

    with caplog.at_level("INFO", logger="polyvec.server"):
        body = {"model": MODEL, "input": ["something private", "and more"]}
        server.http.post("/v1/embeddings", json=body, headers={"x-request-id": "mine-1"})
        wrong = body | {"task": "no"}
        server.http.post("/v1/embeddings", json=wrong, headers={"x-request-id": "mine-2"})
        wait_for(lambda: len(mine()) == 2)
    [good, bad] = mine()
    assert (good["status"], bad["status"]) == (200, 400)
    assert good["path"] == "/v1/embeddings" and good["request_id"] == "mine-1"
    assert good["texts"] == 2 and good["tokens"] > 4 and good["ms"] > 0
    assert "private" not in caplog.text


def test_every_stage_is_timed(server):
    before = read_metrics(server)
    assert server.embed(TEXTS).status_code == 200
    after = read_metrics(server)
    for stage in ("request", "tokenise", "queue", "inference", "serialise"):
        name = f"polyvec_{stage}_seconds"
        assert after[f"{name}_count"] > before[f"{name}_count"], stage
        assert after[f"{name}_sum"] > before[f"{name}_sum"], stage
    assert after["polyvec_texts_total"] - before["polyvec_texts_total"] == len(TEXTS)
    assert after["polyvec_ready"] == 1 and "polyvec_queue_tokens" in after


def test_a_cached_text_is_not_embedded_again(library):
    """One entry serves every dim and encoding; another task is another text."""
    with serving(cache_bytes=1_000_000) as server:
        first = server.embed(TEXTS).json()
        again = server.embed([TEXTS[1], "new", TEXTS[0]], dimensions=32)
        got = np.float32([row["embedding"] for row in again.json()["data"]])
        expected = library.encode([TEXTS[1], "new", TEXTS[0]], dim=32)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert read_metrics(server)["polyvec_cache_hits_total"] == 2
        assert server.embed(TEXTS).json() == first
        other = server.embed(TEXTS, task="separation").json()["data"]
        expected = library.encode(TEXTS, task="separation")
        np.testing.assert_allclose([row["embedding"] for row in other], expected, atol=1e-5)
        assert read_metrics(server)["polyvec_texts_total"] == 3 + 1 + 3


def test_the_cache_is_bounded_and_forgets_what_is_unused_longest():
    size = 4 * 8 + ENTRY_OVERHEAD_BYTES
    cache = VectorCache(3 * size)
    keys = [cache_key(np.array([number], np.int32), 0) for number in range(4)]
    for number, key in enumerate(keys[:3]):
        cache.add(key, np.full(8, number, np.float32))
    assert cache.find(keys[0]) is not None
    cache.add(keys[3], np.full(8, 3, np.float32))
    assert [cache.find(key) is not None for key in keys] == [True, False, True, True]
    assert len(cache) == 3 and cache.num_bytes == 3 * size


def test_models_and_engines_share_a_server(library, tiny_model):
    """Two models, two engine processes each; every request gets its own model's vectors."""
    tiny = Encoder.load(tiny_model, device="cpu", precision="float32")
    with serving(more=[tiny_model], num_engines=2) as server:
        name = tiny_model.name

        def ask(number):
            model = (MODEL, name)[number % 2]
            body = {"model": model, "input": TEXTS, "task": "separation"}
            data = server.http.post("/v1/embeddings", json=body).json()["data"]
            return np.float32([row["embedding"] for row in data])

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(24)))
        for number, got in enumerate(answers):
            encoder = (library, tiny)[number % 2]
            expected = encoder.encode(TEXTS, task="separation")
            np.testing.assert_allclose(got, expected, atol=1e-5)
        pids = {e.pid for model in server.service.models for e in model.scheduler.engines}
        assert len(pids) == 4
        listed = server.http.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["polyvec-mini", name, MODEL]


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="polyvec-mini"):
        make_service(["mini", "mini"])
    with pytest.raises(ValueError, match="there is no model"):
        make_service(["mini"], aliases=["a=b"])


def test_pages_of_other_origins_are_let_in_only_if_named(server):
    origin = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in server.http.get("/live", headers=origin).headers
    with serving(cors=["https://example.org"]) as named:
        ask = origin | {"access-control-request-method": "POST"}
        assert named.http.options("/v1/embeddings", headers=ask).status_code == 200
        answer = named.http.get("/live", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        answer = named.http.get("/live", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers


@pytest.fixture
def collector():
    """An OTLP collector's address, and the spans that come."""
    spans = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(sent).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as listening:
        thread = Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", spans
        listening.shutdown()
        thread.join()


def test_a_request_is_a_span_in_its_clients_trace(collector):
    url, spans = collector
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with serving(otlp=url) as server:
        headers = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "mine-2"}
        body = {"model": MODEL, "input": TEXTS}
        assert server.http.post("/v1/embeddings", json=body, headers=headers).status_code == 200
    mine = {span.name: span for span in spans if span.trace_id.hex() == trace}
    request = mine.pop("POST /v1/embeddings")
    assert request.parent_span_id.hex() == parent
    values = {one.key: one.value for one in request.attributes}
    assert values["polyvec.request_id"].string_value == "mine-2"
    assert values["polyvec.texts"].int_value == 3
    assert values["http.response.status_code"].int_value == 200
    assert set(mine) == {"tokenise", "engine", "serialise"}
    assert {span.parent_span_id for span in mine.values()} == {request.span_id}


def test_what_takes_too_long_is_answered_504():
    with serving(make_engine=faulty_engine, limits=Limits(request_seconds=0.1)) as server:
        status, sentence = check_error(server.embed([[SLOW]]))
        assert (status, "0.1 seconds" in sentence) == (504, True)
