"""API keys are secret, and their quotas hold."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from polyvec.server import api_keys
from polyvec.server.api_keys import ApiKey, ApiKeys, TokenBucket, hash_key, hash_keys
from polyvec.server.errors import ApiError
from tests.server.conftest import MODEL, check_error, serving
from tests.server.faults import SLOW, faulty_engine, frame


def test_every_key_is_compared_in_constant_time(monkeypatch):
    """The comparison does not stop at the first key that matches."""
    compared = []
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
    clients = ApiKeys(hash_keys(["one", "two", "three"]))
    headers = {b"authorization": b"Bearer one"}
    assert clients.authenticate(headers).name == "key-1" and len(compared) == 3


def test_a_key_may_come_in_each_header_that_clients_use():
    """Authorization comes first. A scheme without a key, or an empty header, is no key."""
    clients = ApiKeys(hash_keys(["one", "two"]))
    for headers in (
        {b"authorization": b"bearer one"},
        {b"api-key": b"one"},
        {b"x-api-key": b" one "},
        {b"authorization": b"", b"api-key": b"one"},
        {b"authorization": b"Bearer one", b"api-key": b"two"},
    ):
        assert clients.authenticate(headers).name == "key-1"
    for headers, code in (
        ({b"api-key": b""}, "AUTH_MISSING_API_KEY"),
        ({b"api-key": b"Bearer one"}, "AUTH_INVALID_API_KEY"),
        ({b"authorization": b"Bearer three", b"api-key": b"one"}, "AUTH_INVALID_API_KEY"),
        ({b"authorization": b"Basic one", b"api-key": b"one"}, "AUTH_INVALID_FORMAT"),
    ):
        with pytest.raises(ApiError) as error:
            clients.authenticate(headers)
        assert error.value.code == code


def test_a_key_that_stays_keeps_what_it_has_used():
    """Its digest and the sizes of its quotas may change; a removed key is unknown at once."""
    clients = ApiKeys(
        [
            ApiKey("a", hash_key("old"), tokens=TokenBucket(size=100.0)),
            ApiKey("b", hash_key("b"), requests=TokenBucket(size=5.0)),
        ]
    )
    in_progress = clients.authenticate({b"api-key": b"old"})
    in_progress.admit()
    in_progress.charge(60)
    new = ApiKey("a", hash_key("new"), tokens=TokenBucket(size=1_000.0), concurrency=2)
    clients.replace([new])
    kept = clients.authenticate({b"api-key": b"new"})
    assert kept is in_progress and (kept.num_requests, kept.num_tokens) == (1, 60)
    assert kept.concurrency == 2 and kept.tokens.left == pytest.approx(940, abs=1)
    for revoked in (b"old", b"b"):
        with pytest.raises(ApiError, match="Invalid API key"):
            clients.authenticate({b"api-key": revoked})
    clients.replace([ApiKey("a", hash_key("new"))])
    kept.charge(10**9)


def test_quotas_fill_with_time_and_not_with_the_clock(monkeypatch):
    """Quotas refill over time, and a clock that jumps changes nothing."""
    now = [100.0]
    monkeypatch.setattr(api_keys.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(api_keys.time, "time", lambda: 0.0)
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


def test_quotas_are_enforced_over_http(tmp_path):
    """Headers say what is left, and an exceeded quota is 429 with Retry-After."""
    known = [
        ApiKey(
            "few", hash_key("few"), requests=TokenBucket(size=3.0), tokens=TokenBucket(size=50.0)
        ),
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
        slow = {"model": MODEL, "input": frame([[SLOW]])}
        with ThreadPoolExecutor(4) as pool:
            answers = list(
                pool.map(
                    lambda _: server.http.post("/v1/embeddings", json=slow, headers=one), range(4)
                )
            )
        assert {answer.status_code for answer in answers} == {200, 429}
