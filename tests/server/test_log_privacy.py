"""Nothing that a client sends is logged unless it is known to be harmless."""

import json
import re

import pytest

from polyvec.server.api_keys import ApiKeys, hash_keys
from polyvec.server.log_privacy import UNKNOWN_ROUTE, loggable_id, make_route_finder
from polyvec.server.routes import ENDPOINTS
from tests.processes import wait_for
from tests.server.conftest import MODEL, serving

HEX_KEY = "0123456789abcdef0123456789abcdef"
SECRET = "sk-secret-Zm9vYmFyYmF6"
KEYS = ApiKeys(hash_keys([HEX_KEY, SECRET, "deadbeef"]))


@pytest.mark.parametrize(
    "request_id",
    [
        "5d0c81b3a9f1e6a2",
        "6f1ed002-ab5a-4d4b-b2b1-1f5c5c8f3a11",
        "6F1ED002-AB5A-4D4B-B2B1-1F5C5C8F3A11",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    ],
)
def test_a_usual_request_id_is_logged(request_id):
    assert loggable_id(request_id, KEYS) == request_id


@pytest.mark.parametrize(
    "request_id",
    [
        SECRET,
        HEX_KEY,
        f"00-{HEX_KEY}-b7ad6b7169203331-01",
        "01234567-89ab-cdef-0123-456789abcdef",
        "deadbeef-ab5a-4d4b-b2b1-1f5c5c8f3a11",
        f"id/{SECRET}",
        "sk-of-another-service",
        HEX_KEY * 2,
        "hunter2",
    ],
)
def test_an_id_that_may_be_a_key_is_logged_as_a_digest(request_id):
    logged = loggable_id(request_id, KEYS)
    assert logged.startswith("sha256:") and len(logged) == 23 and request_id not in logged


def test_every_route_is_found_by_its_paths():
    find_route = make_route_finder(endpoint.path for endpoint in ENDPOINTS)
    for endpoint in ENDPOINTS:
        path = re.sub(r"\{[^}]*\}", "a", endpoint.path)
        # A fixed path may also be that of a route whose last part is anything.
        assert find_route(path) in (
            endpoint.path,
            *(other.path for other in ENDPOINTS if ":path}" in other.path),
        )
    for path in (f"/v1/{SECRET}", f"/{SECRET}", f"/v1/embeddings/{SECRET}", "", "//", "/v1"):
        assert find_route(path) == UNKNOWN_ROUTE


def test_a_key_in_the_wrong_place_is_not_logged(caplog):
    """The client still reads its own values in the answer."""
    headers = {"authorization": f"Bearer {SECRET}"}
    wrong = {"x-request-id": SECRET, "user-agent": SECRET, "referer": f"http://a/{SECRET}"}
    body = {"model": SECRET, "input": "a", "user": SECRET}
    with (
        caplog.at_level("INFO", logger="polyvec.server"),
        serving(api_keys=ApiKeys(hash_keys([SECRET]))) as server,
    ):
        before = len(caplog.messages)
        for sent in (headers, {}):
            for path in (f"/v1/{SECRET}", f"/v1/models/{SECRET}", f"/v1/batch/{SECRET}"):
                for query in ("", f"?key={SECRET}"):
                    answer = server.http.get(path + query, headers={**sent, **wrong})
                    assert answer.status_code in (401, 404)
                    assert answer.headers["x-request-id"] == SECRET
            answer = server.http.post("/v1/embeddings", json=body, headers={**sent, **wrong})
            assert answer.status_code in (400, 401)
        assert SECRET in answer.headers["x-request-id"]
        good = server.http.post(
            "/v1/embeddings", json={**body, "model": MODEL}, headers={**headers, **wrong}
        )
        assert good.status_code == 200
        metrics = server.http.get("/metrics", headers=headers).text
        wait_for(lambda: len(caplog.messages) >= before + 16)
    assert SECRET not in caplog.text and SECRET not in metrics
    paths = {json.loads(line).get("path") for line in caplog.messages if line.startswith("{")}
    assert {"none", "/v1/models/{model_id:path}", "/v1/embeddings"} <= paths
