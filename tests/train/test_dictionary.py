"""Lining up two languages through bags of words."""

import numpy as np
import pytest

from polyvec.train.dictionary import average_bags, bags, fit_table, token_weights


def test_a_bag_is_the_weighted_sum_of_its_rows(rng: np.random.Generator) -> None:
    table = rng.standard_normal((5, 3)).astype(np.float32)
    weights = rng.random(5).astype(np.float32)
    found = bags([[0, 3, 3], [4]], table, weights)
    whole = weights[0] * table[0] + 2 * weights[3] * table[3]
    np.testing.assert_allclose(found[0], whole / np.linalg.norm(whole), atol=1e-6)
    np.testing.assert_allclose(found[1], table[4] / np.linalg.norm(table[4]), atol=1e-6)


def test_the_average_bag_of_a_token_comes_from_its_texts() -> None:
    targets = np.eye(3, dtype=np.float32)
    found = average_bags([[0, 1], [1, 1], [2]], targets, 4)
    np.testing.assert_allclose(found[0], targets[0])
    np.testing.assert_allclose(found[1], (targets[0] / 2 + targets[1]) / 1.5)
    assert not found[3].any()


def test_words_that_translate_each_other_end_up_together(rng: np.random.Generator) -> None:
    source = rng.standard_normal((20, 16)).astype(np.float32)
    sentences = [rng.choice(20, size=4, replace=False) for _ in range(600)]
    ones = np.ones(20, np.float32)
    targets = bags(sentences, source, ones)
    start = average_bags(sentences, targets, 20)
    groups = np.arange(len(sentences))
    found = fit_table(
        start, sentences, targets, groups, ones, steps=150, batch_size=64, learning_rate=0.05
    )
    unit = source / np.linalg.norm(source, axis=1, keepdims=True)

    def hits(table: np.ndarray) -> float:
        return float(((table @ unit.T).argmax(1) == np.arange(20)).mean())

    assert hits(found) == 1.0
    before = (start / np.linalg.norm(start, axis=1, keepdims=True) * unit).sum(1).mean()
    assert (found * unit).sum(1).mean() > before + 0.1


def test_tokens_that_are_everywhere_weigh_least() -> None:
    weights = token_weights([[0] * 1_000 + [1, 2], [0] * 1_000 + [1]], vocab_size=4)
    assert weights[0] < 0.01
    assert weights[0] < weights[1] < weights[2] < weights[3] == pytest.approx(1.0)
