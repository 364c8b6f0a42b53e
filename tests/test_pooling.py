"""Mean pooling over spans."""

import numpy as np
import pytest

from polyvec.pooling import pool_spans


def test_a_span_is_the_mean_of_its_tokens(rng: np.random.Generator) -> None:
    hidden = rng.standard_normal((9, 4), np.float32)
    starts, ends = np.int32([0, 3, 2]), np.int32([9, 4, 6])
    means = pool_spans(hidden, starts, ends)
    for mean, start, end in zip(means, starts, ends, strict=True):
        np.testing.assert_allclose(mean, hidden[start:end].astype(float).mean(0), atol=1e-6)


def test_a_long_mean_is_exact_to_float32(rng: np.random.Generator) -> None:
    hidden = (rng.standard_normal((8192, 3)) + 1000).astype(np.float32)
    mean = pool_spans(hidden, np.int32([0]), np.int32([8192]))[0]
    np.testing.assert_allclose(mean, hidden.astype(float).mean(0), rtol=1e-6)


def test_no_spans_give_no_vectors() -> None:
    empty = np.empty(0, np.int32)
    assert pool_spans(np.ones((3, 4), np.float32), empty, empty).shape == (0, 4)


@pytest.mark.parametrize(("start", "end"), [(2, 2), (2, 1), (-1, 2), (0, 4)])
def test_a_span_without_tokens_of_its_own_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="span"):
        pool_spans(np.ones((3, 4), np.float32), np.int32([start]), np.int32([end]))
