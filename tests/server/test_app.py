"""The application limits the time of a request, and the origins of web pages."""

import pytest

from polyvec.server.api_keys import ApiKeys, hash_keys
from polyvec.server.cors import allow_origins, check_origin
from polyvec.server.limits import Limits
from tests.server.conftest import MODEL, check_error, serving
from tests.server.faults import SLOW, faulty_engine

SDK_HEADERS = "authorization,content-type,api-key,x-stainless-os,x-stainless-timeout"


def preflight(server, origin, **headers):
    ask = {"origin": origin, "access-control-request-method": "POST"}
    return server.http.options("/v1/embeddings", headers=ask | headers)


def test_pages_of_named_origins_may_call_the_api_with_any_header(server):
    """Preflights carry no key; the answers that need one say so to the page."""
    origin = "https://example.org"
    assert (
        "access-control-allow-origin"
        not in server.http.get("/live", headers={"origin": origin}).headers
    )
    keys = ApiKeys(hash_keys(["secret"]))
    with serving(cors=[origin, "app://obsidian.md"], api_keys=keys) as named:
        for one in (origin, "app://obsidian.md"):
            answer = preflight(named, one, **{"access-control-request-headers": SDK_HEADERS})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-headers"] == SDK_HEADERS
            assert answer.headers["access-control-allow-origin"] == one
        refused = named.http.post("/v1/embeddings", headers={"origin": origin}, json={})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == origin
        assert "X-Request-Id" in refused.headers["access-control-expose-headers"]
        assert "Retry-After" in refused.headers["access-control-expose-headers"]
        for other in ("https://evil.example", "null", "https://example.org.evil.example"):
            assert preflight(named, other).status_code == 400
            answer = named.http.get("/live", headers={"origin": other})
            assert "access-control-allow-origin" not in answer.headers
        azure = f"/openai/deployments/{MODEL}/embeddings?api-version=2024-06-01"
        for header, status in (("api-key", 200), ("x-api-key", 200), ("ocp-key", 401)):
            answer = named.http.post(azure, headers={header: "secret"}, json={"input": "a"})
            assert answer.status_code == status
        # POST / embeds, although anybody may read the page at the same path.
        assert named.http.post("/", json={"inputs": "a"}).status_code == 401
        assert named.http.get("/").status_code == named.http.head("/ping/").status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "example.org",
        "https://example.org/",
        "https://example.org/app",
        "https://Example.org",
        "https://*.example.org",
        "https://example.org:443",
        "http://localhost:99999",
        "https://user@example.org",
        "",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(ValueError, match="--cors"):
        check_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "https://example.org",
        "http://localhost:3000",
        "http://[::1]:8000",
        "app://obsidian.md",
        "vscode-webview://1a-2b",
    ],
)
def test_an_origin_as_browsers_write_it_is_accepted(origin):
    check_origin(origin)


def test_the_wildcard_never_allows_cookies():
    for origins in (["*"], ["null", "https://example.org"]):
        assert not allow_origins(origins).kwargs["allow_credentials"]


def test_a_path_with_a_slash_at_its_end_is_the_same_path(server):
    """No answer is a redirect, whose address a server behind a proxy cannot know."""
    body = {"model": MODEL, "input": "a"}
    for path in ("/v1/embeddings", "/v1/embeddings/"):
        assert server.http.post(path, json=body).status_code == 200
    for path in ("/v1/models", "/v1/models/polyvec-mini", "/health", "/info", "/openapi.json"):
        whole = server.http.get(path)
        assert server.http.get(path + "/").json() == whole.json()
        head = server.http.head(path + "/")
        assert head.status_code == 200 and not head.content
        assert head.headers["content-type"] == whole.headers["content-type"]
    for path in ("/v1/embeddings//", "/v1//embeddings", "/nowhere/"):
        answer = server.http.post(path, json=body)
        assert answer.status_code == 404 and "location" not in answer.headers


def test_a_request_that_takes_too_long_is_answered_with_504():
    with serving(make_engine=faulty_engine, limits=Limits(request_seconds=0.1)) as server:
        status, sentence = check_error(server.embed([[SLOW]]))
        assert (status, "0.1 seconds" in sentence) == (504, True)
