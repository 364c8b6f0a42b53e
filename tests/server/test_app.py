"""The application limits the time of a request, and the origins of web pages."""

from polyvec.server.limits import Limits
from tests.server.conftest import check_error, serving
from tests.server.faults import SLOW, faulty_engine


def test_pages_of_other_origins_may_call_the_api_only_if_they_are_named(server):
    origin = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in server.http.get("/live", headers=origin).headers
    with serving(cors=["https://example.org"]) as named:
        ask = origin | {"access-control-request-method": "POST"}
        assert named.http.options("/v1/embeddings", headers=ask).status_code == 200
        answer = named.http.get("/live", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        answer = named.http.get("/live", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_a_request_that_takes_too_long_is_answered_with_504():
    with serving(make_engine=faulty_engine, limits=Limits(request_seconds=0.1)) as server:
        status, sentence = check_error(server.embed([[SLOW]]))
        assert (status, "0.1 seconds" in sentence) == (504, True)
