"""Requests are spans in the traces of their clients."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.server.conftest import MODEL, TEXTS, serving


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
        headers = {
            "traceparent": f"00-{trace}-{parent}-01",
            "x-request-id": "5eed0002",
            "tracestate": "a=secret",
        }
        body = {"model": MODEL, "input": TEXTS}
        assert server.http.post("/v1/embeddings", json=body, headers=headers).status_code == 200
    mine = {span.name: span for span in spans if span.trace_id.hex() == trace}
    request = mine.pop("POST /v1/embeddings")
    assert request.parent_span_id.hex() == parent
    values = {one.key: one.value for one in request.attributes}
    assert values["polyvec.request_id"].string_value == "5eed0002"
    assert not request.trace_state
    assert values["polyvec.texts"].int_value == 3
    assert values["http.response.status_code"].int_value == 200
    assert set(mine) == {"tokenise", "engine", "serialise"}
    assert {span.parent_span_id for span in mine.values()} == {request.span_id}
