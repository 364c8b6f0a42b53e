"""Two lists with lines missing find each other again."""

from itertools import pairwise

import numpy as np
import pytest

from polyvec.train.alignment import align


@pytest.mark.parametrize("seed", range(5))
def test_what_two_lists_kept_of_one_is_found(seed):
    rng = np.random.default_rng(seed)
    lines = rng.normal(size=(60, 16))
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    one, two = (np.flatnonzero(rng.random(60) < 0.8) for _ in range(2))
    pairs = align((lines[one] @ lines[two].T).astype(np.float32), least=0.7)
    assert {(one[i], two[j]) for i, j in pairs} == {(n, n) for n in {*one} & {*two}}


def test_pairs_rise_on_both_sides_and_add_up_to_the_most_there_is():
    rng = np.random.default_rng(0)
    likeness = rng.random((7, 6), np.float32)
    pairs = align(likeness, least=0.4)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))

    def best(i: int, j: int) -> float:
        """Every choice tried."""
        if i == 7 or j == 6:
            return 0.0
        gain = max(likeness[i, j] - 0.4, 0)
        return max(best(i + 1, j), best(i, j + 1), gain + best(i + 1, j + 1))

    assert sum(likeness[i, j] - 0.4 for i, j in pairs) == pytest.approx(best(0, 0), abs=1e-5)


def test_nothing_alike_is_nothing_aligned():
    assert align(np.zeros((3, 4), np.float32), least=0.1) == []
