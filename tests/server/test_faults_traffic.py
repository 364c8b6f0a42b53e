"""Faults F18 to F24 and F31: too many clients, impatient ones, and strangers."""

import hashlib
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from polyvec.server import quotas
from polyvec.server.limits import Limits
from polyvec.server.middleware import PUBLIC_PATHS
from polyvec.server.quotas import ApiKey, ApiKeys, TokenBucket, hash_key, hash_keys, read_key_file
from polyvec.server.routes import ENDPOINTS
from tests.processes import start_server, wait_for
from tests.server.conftest import MODEL, check_error, serving
from tests.server.faults import SLOW, faulty_engine

KEY = "pv-secret-key-é"


@pytest.fixture(scope="module")
def narrow():
    """A server with a short queue."""
    limits = Limits(queue_tokens=400, items=10_000)
    with serving(make_engine=faulty_engine, limits=limits) as running:
        yield running


def post_and_leave(server, text):
    """Send a request and go away without waiting for its answer."""
    host, port = server.url.removeprefix("http://").split(":")
    body = f'{{"model": "{MODEL}", "input": {text}}}'
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def test_work_of_clients_that_left_is_dropped(narrow, library):
    """F18: clients disconnect while queued and while running."""
    scheduler = narrow.service.models[0].scheduler
    running = post_and_leave(narrow, f"[[{SLOW}, 5]]")
    wait_for(lambda: scheduler.num_busy)
    queued = [post_and_leave(narrow, f'"queued {number}"') for number in range(20)]
    wait_for(lambda: len(scheduler.queue) == 20)
    before = narrow.http.get("/metrics").text
    for connection in (running, *queued):
        connection.close()
    wait_for(lambda: len(scheduler.queue) == 0)
    got = narrow.embed("after them").json()["data"][0]["embedding"]
    np.testing.assert_allclose(got, library.encode("after them")[0], atol=1e-5)

    def texts(page):
        return next(
            float(x.split()[1]) for x in page.splitlines() if x.startswith("polyvec_texts_total ")
        )

    done = texts(narrow.http.get("/metrics").text) - texts(before)
    assert done <= 3, "what was queued never reached the engine"
    assert narrow.service.load.running == 0 or narrow.http.get("/live").status_code == 200


def test_a_full_queue_is_429_at_once(narrow):
    """F19: queue full: 429 and Retry-After, quickly, and nothing piles up."""
    scheduler = narrow.service.models[0].scheduler
    with ThreadPoolExecutor(40) as pool:
        slow = pool.submit(narrow.embed, [[SLOW] * 5])
        wait_for(lambda: scheduler.num_busy)
        text = "word " * 90

        def ask(_):
            began = time.monotonic()
            answer = narrow.embed(text)
            return answer, time.monotonic() - began

        answers = list(pool.map(ask, range(30)))
        assert slow.result().status_code == 200
    refused = [(answer, seconds) for answer, seconds in answers if answer.status_code == 429]
    assert {answer.status_code for answer, _ in answers} == {200, 429}
    for answer, _ in refused:
        assert check_error(answer)[0] == 429 and int(answer.headers["retry-after"]) >= 1
    assert scheduler.queue.tokens == 0


def test_too_many_requests_at_once_are_429():
    """F19: the number of requests in work is bounded too."""
    with serving(make_engine=faulty_engine, limits=Limits(requests=4)) as server:
        with ThreadPoolExecutor(16) as pool:
            codes = [
                a.status_code for a in pool.map(server.embed, [[[SLOW, i]] for i in range(16)])
            ]
        assert set(codes) == {200, 429}
        assert server.embed("later").status_code == 200


def test_a_big_job_does_not_starve_small_ones(server):
    """F24: single texts are answered while a request of 1,000 texts is under way."""
    with ThreadPoolExecutor(1) as pool:
        big = pool.submit(server.embed, [f"number {number}" for number in range(1_000)])
        wait_for(lambda: server.service.models[0].scheduler.queue.tokens > 2_000)
        small = [server.embed(f"small {number}") for number in range(5)]
        assert all(answer.status_code == 200 for answer in small)
        assert not big.done(), "the small ones overtook it"
        assert len(big.result().json()["data"]) == 1_000


def test_sigterm_drains_and_sigkill_leaves_nothing_behind():
    """F20: SIGTERM finishes what is in work, late requests are 503; F31: all under python -O.

    After SIGKILL a new server starts cleanly, and no engine process is left.
    """
    body = {"model": "polyvec-mini", "input": [f"text number {n}" for n in range(1_500)]}
    process, url = start_server(optimise=True)
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=300) as late:
        assert late.get("/live").status_code == 200
        assert check_error(late.post("/v1/embeddings", json={"model": "x", "input": ""}))[0] == 400
        working = pool.submit(httpx.post, f"{url}/v1/embeddings", json=body, timeout=300)
        wait_for(lambda: "polyvec_requests_running 1.0" in late.get("/metrics").text)
        wait_for(lambda: "polyvec_queue_tokens 0.0" not in late.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: late.get("/ready").status_code == 503)
        refused = late.post("/v1/embeddings", json=body)
        assert check_error(refused)[0] == 503
        assert len(working.result().json()["data"]) == 1_500
    assert process.wait(300) in (0, -signal.SIGTERM)
    process, url = start_server()
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}/stat").exists() for child in children))


def test_two_clients_may_use_one_request_id(server, library):
    """F21: a request id is echoed and is no key to anything; a strange one is replaced."""
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
    """F22: every route, known or not, whatever the method."""
    for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD"):
        answer = closed.http.request(method, path)
        assert (answer.status_code == 401) == (path not in PUBLIC_PATHS), method


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
    """F22: missing, wrong, a prefix, Unicode."""
    headers = {} if given is None else {"authorization": given.encode()}
    answer = closed.http.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, code)


def test_the_right_key_opens(closed):
    """F22: also one with letters beyond ASCII, sent as UTF-8."""
    headers = {"authorization": f"Bearer {KEY}".encode()}
    assert closed.http.get("/v1/models", headers=headers).status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch):
    """F22: no early end at the first key that fits."""
    compared = []
    monkeypatch.setattr(
        quotas.hmac, "compare_digest", lambda a, b: compared.append(a) or a == b
    )
    clients = ApiKeys(hash_keys(["one", "two", "three"]))
    assert clients.authenticate("Bearer one").name == "key-1" and len(compared) == 3


def test_keys_are_read_from_a_file_of_digests(tmp_path):
    path = tmp_path / "keys.txt"
    digest = hashlib.sha256(b"k").hexdigest()
    path.write_text(f"# name digest\nalice {digest} requests=2 tokens=9 concurrency=1\n")
    [alice] = read_key_file(path)
    assert alice.digest == hash_key("k") and alice.concurrency == 1
    for line in ("alice", "alice abc", f"alice {digest} speed=3", f"alice {digest} tokens=0"):
        path.write_text(line)
        with pytest.raises(ValueError, match="line 1"):
            read_key_file(path)


def test_quotas_fill_with_time_and_not_with_the_clock(monkeypatch):
    """F23: the rate-limit window, and a clock that jumps."""
    now = [100.0]
    monkeypatch.setattr(quotas.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(quotas.time, "time", lambda: 0.0)
    client = ApiKey("a", requests=TokenBucket(size=2.0), tokens=TokenBucket(size=100.0))
    client.admit()
    client.admit()
    with pytest.raises(Exception, match="2/2 requests per minute"):
        client.admit()
    now[0] += 30
    client.admit()
    with pytest.raises(Exception, match="requests"):
        client.admit()
    now[0] -= 1_000
    with pytest.raises(Exception, match="requests"):
        client.admit()
    now[0] += 30
    client.admit()
    client.charge(90)
    with pytest.raises(Exception, match=r"90/100 tokens per minute"):
        client.charge(20)
    with pytest.raises(Exception, match="this request has 101 tokens"):
        client.charge(101)


def test_quotas_are_kept_over_http(tmp_path):
    """F23: hosted headers, 429 with Retry-After, and concurrency."""
    known = [
        ApiKey("few", hash_key("few"), requests=TokenBucket(size=3.0), tokens=TokenBucket(size=50.0)),
        ApiKey("one", hash_key("one"), concurrency=1),
    ]
    with serving(make_engine=faulty_engine, api_keys=ApiKeys(known)) as server:
        body = {"model": MODEL, "input": "a b c"}
        few, one = ({"authorization": f"Bearer {key}"} for key in ("few", "one"))
        left = []
        for _ in range(3):
            answer = server.http.post("/v1/embeddings", json=body, headers=few)
            assert answer.status_code == 200
            left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
            assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 50
        assert left == sorted(left, reverse=True) and left[-1] == 0
        answer = server.http.post("/v1/embeddings", json=body, headers=few)
        assert check_error(answer)[0] == 429 and answer.headers["retry-after"]
        assert answer.json()["code"] == "RATE_REQUEST_LIMIT_EXCEEDED"
        slow = {"model": MODEL, "input": [[SLOW]]}
        with ThreadPoolExecutor(4) as pool:
            answers = list(
                pool.map(
                    lambda _: server.http.post("/v1/embeddings", json=slow, headers=one), range(4)
                )
            )
        assert {answer.status_code for answer in answers} == {200, 429}
