"""API keys are secret, and their quotas hold."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from polyvec.server import api_keys
from polyvec.server.api_keys import ApiKey, ApiKeys, TokenBucket, hash_key, hash_keys, read_key_file
from tests.server.conftest import MODEL, check_error, serving
from tests.server.faults import SLOW, faulty_engine, frame


def test_every_key_is_compared_in_constant_time(monkeypatch):
    """The comparison does not stop at the first key that matches."""
    compared = []
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
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
