"""Hard negatives compared with brute force, and texts that are never negatives."""

import numpy as np
import pytest

from polyvec.encoder import Encoder
from polyvec.train.data.hard_negatives import (
    bm25_scores,
    candidates,
    cosine_scores,
    merge_negatives,
    mine,
)
from polyvec.train.data.pairs import Pairs


@pytest.fixture
def rows() -> Pairs:
    """Sixty queries about thirty passages in twenty groups; some queries are passages too."""
    rng = np.random.default_rng(0)
    words = "fox dog den snow sleeps jumps brown lazy quick under over where the a".split()
    passages = [" ".join(rng.choice(words, 8)) for _ in range(30)]
    of = rng.integers(30, size=60)
    queries = [" ".join(rng.choice(words, 3)) for _ in range(50)] + passages[:10]
    return Pairs(
        texts=queries,
        partners=[passages[i] for i in of],
        groups=of % 20,
        langs=["en"] * 60,
        negatives=[[]] * 60,
    )


def brute(rows: Pairs, matrix: np.ndarray, num: int, margin: float, skip: int) -> list[list[str]]:
    """The definition, applied to one pair of texts at a time."""
    texts = candidates(rows)
    found = []
    for i in range(len(rows)):
        best = float(matrix[i, texts.index(rows.partners[i])])
        rated = []
        for j, text in enumerate(texts):
            mine = any(
                rows.partners[k] == text and rows.groups[k] == rows.groups[i]
                for k in range(len(rows))
            )
            close = float(matrix[i, j]) > best - (1 - margin) * abs(best)
            if not mine and not close and text != rows.texts[i]:
                rated.append((-float(matrix[i, j]), j))
        found.append([texts[j] for _, j in sorted(rated)[skip : skip + num]])
    return found


@pytest.mark.parametrize(("num", "margin", "skip"), [(7, 0.95, 0), (3, 1.0, 2), (40, 0.5, 0)])
def test_negatives_are_those_of_brute_force(
    num: int, margin: float, skip: int, rows: Pairs
) -> None:
    matrix = np.random.default_rng(1).normal(size=(60, len(candidates(rows)))).astype(np.float32)
    found = mine(rows, lambda start, stop: matrix[start:stop], num=num, margin=margin, skip=skip)
    assert found == brute(rows, matrix, num, margin, skip)
    assert any(found)


def test_a_models_negatives_are_those_of_its_vectors(encoder: Encoder, rows: Pairs) -> None:
    left = encoder.encode(rows.texts, task="retrieval.query")
    right = encoder.encode(candidates(rows), task="retrieval.passage")
    found = mine(rows, cosine_scores(encoder, rows), num=5)
    assert found == brute(rows, left @ right.T, 5, 0.95, 0)


def test_bm25_scores_equal_the_formula(encoder: Encoder, rows: Pairs) -> None:
    texts = candidates(rows)
    queries, documents = (
        [t.ids[1:-1].tolist() for t in encoder.tokenizer.encode(part, [""] * len(part))]
        for part in (rows.texts, texts)
    )
    mean = np.mean([len(document) for document in documents])
    expected = np.zeros((len(queries), len(documents)))
    for i, query in enumerate(queries):
        for piece in query:
            n = sum(piece in document for document in documents)
            idf = np.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            for j, document in enumerate(documents):
                tf = document.count(piece)
                length = 0.25 + 0.75 * len(document) / mean
                expected[i, j] += idf * tf / (tf + 1.5 * length)
    np.testing.assert_allclose(bm25_scores(encoder, rows)(0, 60), expected, rtol=1e-4, atol=1e-5)


def test_no_negative_is_of_the_querys_group_or_the_query(encoder: Encoder, rows: Pairs) -> None:
    owners: dict[str, set[int]] = {}
    for partner, group in zip(rows.partners, rows.groups.tolist(), strict=True):
        owners.setdefault(partner, set()).add(group)
    for score in (cosine_scores(encoder, rows), bm25_scores(encoder, rows)):
        for i, texts in enumerate(mine(rows, score, num=30, margin=1.0)):
            assert rows.texts[i] not in texts
            assert all(int(rows.groups[i]) not in owners[text] for text in texts)


def test_negatives_of_several_miners_are_merged_in_turn() -> None:
    one, two = [["a", "b", "c"], []], [["b", "d"], ["e"]]
    assert merge_negatives(one, two, num=4) == [["a", "b", "d", "c"], ["e"]]
    assert merge_negatives(one, two, num=1) == [["a"], ["e"]]
