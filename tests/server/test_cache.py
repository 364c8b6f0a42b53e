"""The cache saves work, and its memory is bounded."""

import numpy as np

from polyvec.server.cache import ENTRY_OVERHEAD_BYTES, VectorCache, cache_key
from tests.server.conftest import TEXTS, serving


def test_a_cached_text_is_not_embedded_again(library):
    """One entry serves every dim and encoding; another task has another entry."""
    with serving(cache_bytes=1_000_000) as server:
        first = server.embed(TEXTS).json()
        again = server.embed([TEXTS[1], "new", TEXTS[0]], dimensions=32)
        got = np.float32([row["embedding"] for row in again.json()["data"]])
        expected = library.encode([TEXTS[1], "new", TEXTS[0]], dim=32)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert server.read_metrics()["polyvec_cache_hits_total"] == 2
        assert server.embed(TEXTS).json() == first
        other = server.embed(TEXTS, task="separation").json()["data"]
        expected = library.encode(TEXTS, task="separation")
        np.testing.assert_allclose([row["embedding"] for row in other], expected, atol=1e-5)
        assert server.read_metrics()["polyvec_texts_total"] == 3 + 1 + 3


def test_the_cache_is_bounded_and_evicts_the_least_recently_used_vector():
    size = 4 * 8 + ENTRY_OVERHEAD_BYTES
    cache = VectorCache(3 * size)
    keys = [cache_key(np.array([number], np.int32), 0) for number in range(4)]
    for number, key in enumerate(keys[:3]):
        cache.add(key, np.full(8, number, np.float32))
    assert cache.find(keys[0]) is not None
    cache.add(keys[3], np.full(8, 3, np.float32))
    assert [cache.find(key) is not None for key in keys] == [True, False, True, True]
    assert len(cache) == 3 and cache.num_bytes == 3 * size
