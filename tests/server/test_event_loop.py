"""The event loop goes on while the server works on the worst bodies, texts and answers."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from polyvec.server.limits import Limits
from tests.server.conftest import MODEL

MAX_SILENCE_SECONDS = 1.0
"""The worst inputs stopped the event loop for 3 to 6 s. A busy machine alone takes 0.2 s."""


def embed(**fields):
    return "/v1/embeddings", {"model": MODEL, **fields}


def segment(content):
    options = {"return_tokens": True, "return_chunks": True, "max_chunk_length": 20}
    return "/v1/segment", {"content": content, **options}


WORST = {
    "unknown fields": (embed(input="a", **{f"k{n}": 1 for n in range(300_000)}), 400),
    "lists": (embed(input=[[5]] * 600_000), 400),
    "texts": (embed(input=["a"] * 40_000), 400),
    "token ids": (embed(input=[5] * 30_000), 400),
    "a value of another type": (embed(input="a", dimensions="x" * 4_000_000), 422),
    "a long word": (embed(input="a" * 4_000_000), 400),
    "characters that expand": (embed(input="\ufdfa" * 500_000), 400),
    "halves of pairs": (embed(input="\ud800" * 600_000), 200),
    "line ends": (segment("\n" * 50_000), 200),
    "short words": (segment("a b " * 10_000), 200),
    "tokens": (("/tokenize", {"inputs": "a b " * 10_000}), 200),
    "vectors": (("/embed_all", {"inputs": ["the cat sat " * 2_000] * 10}), 400),
}


@pytest.mark.parametrize("name", WORST)
def test_the_event_loop_goes_on(server, name):
    """A request that is expensive for its size delays nothing for long, whatever its answer."""
    ((path, body), status) = WORST[name]
    content = json.dumps(body).encode()
    gaps = []

    async def beat(done):
        last = time.perf_counter()
        while not done.done():
            await asyncio.sleep(0.01)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    with ThreadPoolExecutor(1) as pool:
        headers = {"content-type": "application/json"}
        answer = pool.submit(server.http.post, path, content=content, headers=headers)
        asyncio.run_coroutine_threadsafe(beat(answer), server.loop).result()
    assert answer.result().status_code == status, answer.result().text[:200]
    assert max(gaps) < MAX_SILENCE_SECONDS


def test_vectors_beyond_the_limit_are_refused_before_they_are_computed(server):
    body = {"inputs": ["the cat sat " * 2_000] * 10}
    answer = server.http.post("/embed_all", json=body)
    assert answer.status_code == 400
    assert f"an answer may have {Limits().answer_numbers:,}" in answer.json()["detail"]


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}"), ("[5, [", "]]")])
def test_nesting_of_any_depth_is_the_client_s_fault(server, opening, closing):
    for depth in (3, 50, 70, 330, 900, 950, 990, 1_000, 5_000):
        value = opening * depth + "1" + closing * depth
        for form in ('{"model": "%s", "input": %s}', '{"model": "%s", "input": "a", "other": %s}'):
            assert 400 <= server.error((form % (MODEL, value)).encode())[0] < 500
