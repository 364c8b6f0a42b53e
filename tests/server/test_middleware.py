"""Every request is authenticated, limited and logged before a route sees it."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from polyvec.server.api_keys import ApiKeys, hash_keys
from polyvec.server.limits import Limits
from polyvec.server.middleware import PUBLIC_PATHS, READING_METHODS
from polyvec.server.routes import ENDPOINTS
from tests.processes import wait_for
from tests.server.conftest import MODEL, check_error, serving
from tests.server.faults import SLOW, faulty_engine


def body(**fields):
    return json.dumps({"model": MODEL, "input": "a"} | fields).encode()


def test_too_many_texts_and_too_many_bytes_are_refused(server):
    """A list of 10,000 items, a body of 33 MB."""
    status, sentence = server.error({"input": ["a"] * 10_000})
    assert (status, "10,000" in sentence) == (400, True)
    assert server.error({"input": "a" * 33_000_000})[0] == 413


def test_a_body_of_unknown_length_is_read_up_to_the_limit(server):
    """A chunked body has no length; one is small, and one is endless."""

    def chunks(size):
        yield b'{"model": "%b", "input": "' % MODEL.encode()
        for _ in range(size):
            yield b"word " * 200_000
        yield b'"}'

    kind = {"content-type": "application/json"}
    small = b'{"model": "%b", "input": "a"}' % MODEL.encode()
    answer = server.http.post("/v1/embeddings", content=iter([small[:9], small[9:]]), headers=kind)
    assert answer.status_code == 200
    answer = server.http.post("/v1/embeddings", content=chunks(20), headers=kind)
    assert check_error(answer)[0] == 413


def test_only_json_is_read(server):
    """A wrong content type, or a compressed body."""
    for headers in (
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        answer = server.http.post("/v1/embeddings", content=body(), headers=headers)
        assert check_error(answer)[0] == 415


def test_a_truncated_body_ends_the_request_and_nothing_else(server):
    """The client announces more bytes than it sends, and disconnects."""
    with server.connect() as connection:
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    assert server.embed("still there").status_code == 200


KEY = "pv-secret-key-é"


def test_too_many_requests_at_once_are_answered_with_429():
    """The number of requests in progress is limited."""
    with serving(make_engine=faulty_engine, limits=Limits(requests=4)) as server:
        with ThreadPoolExecutor(16) as pool:
            codes = [
                a.status_code for a in pool.map(server.embed, [[[SLOW, i]] for i in range(16)])
            ]
        assert set(codes) == {200, 429}
        assert server.embed("later").status_code == 200


def test_two_clients_may_use_one_request_id(server, library):
    """A request id is returned, and does not identify a request; an invalid one is replaced."""
    texts = [f"secret {number}" for number in range(16)]
    headers = {"x-request-id": "the-same"}

    def ask(text):
        body = {"model": MODEL, "input": text}
        answer = server.http.post("/v1/embeddings", json=body, headers=headers)
        assert answer.headers["x-request-id"] == "the-same"
        return answer.json()["data"][0]["embedding"]

    with ThreadPoolExecutor(16) as pool:
        got = np.float32(list(pool.map(ask, texts)))
    np.testing.assert_allclose(got, library.encode(texts), atol=1e-5)
    strange = server.http.get("/live", headers={"x-request-id": "a b\tc"})
    assert strange.headers["x-request-id"] != "a b\tc"


@pytest.fixture(scope="module")
def closed():
    """A server with one key."""
    with serving(api_keys=ApiKeys(hash_keys([KEY]))) as running:
        yield running


PATHS = sorted({e.path for e in ENDPOINTS} | {"/nowhere", "/v1/embeddings/", "//v1/models"})


@pytest.mark.parametrize("path", PATHS)
def test_every_route_is_closed_without_a_key(closed, path):
    """Known and unknown paths, with any method."""
    for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD"):
        answer = closed.http.request(method, path)
        is_public = path in PUBLIC_PATHS and method in READING_METHODS
        assert (answer.status_code == 401) != is_public, method


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (None, "AUTH_MISSING_API_KEY"),
        ("", "AUTH_MISSING_API_KEY"),
        (KEY, "AUTH_INVALID_FORMAT"),
        ("Basic abc", "AUTH_INVALID_FORMAT"),
        ("Bearer", "AUTH_INVALID_FORMAT"),
        ("Bearer wrong", "AUTH_INVALID_API_KEY"),
        (f"Bearer {KEY[:-1]}", "AUTH_INVALID_API_KEY"),
        (f"Bearer {KEY}x", "AUTH_INVALID_API_KEY"),
        ("Bearer ключ", "AUTH_INVALID_API_KEY"),
    ],
)
def test_wrong_keys_are_refused(closed, given, code):
    """Missing, wrong, shortened, and non-ASCII keys."""
    headers = {} if given is None else {"authorization": given.encode()}
    answer = closed.http.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, code)


def test_the_right_key_is_accepted(closed):
    """The key has a letter beyond ASCII, sent as UTF-8."""
    headers = {"authorization": f"Bearer {KEY}".encode()}
    assert closed.http.get("/v1/models", headers=headers).status_code == 200


def test_every_request_has_a_line_in_the_log_without_its_text(server, caplog):
    def mine():
        # A line is written after its answer has left, so another test's may come now.
        lines = [json.loads(message) for message in caplog.messages]
        return [line for line in lines if line.get("request_id", "").startswith("5eed")]

    with caplog.at_level("INFO", logger="polyvec.server"):
        body = {"model": MODEL, "input": ["something private", "and more"]}
        server.http.post("/v1/embeddings", json=body, headers={"x-request-id": "5eed0001"})
        wrong = body | {"task": "no"}
        server.http.post("/v1/embeddings", json=wrong, headers={"x-request-id": "5eed0002"})
        wait_for(lambda: len(mine()) == 2)
    [good, bad] = mine()
    assert (good["status"], bad["status"]) == (200, 400)
    assert good["path"] == "/v1/embeddings" and good["request_id"] == "5eed0001"
    assert good["texts"] == 2 and good["tokens"] > 4 and good["ms"] > 0
    assert "private" not in caplog.text
