"""Embeddings of rows, some of which have none."""

import numpy as np
import pytest

from polyvec import Encoder
from polyvec.outputs import NotFiniteError
from polyvec.records import BadRow, Row
from polyvec.row_encoding import encode_finite, encode_rows


class SpoiltEncoder(Encoder):
    """An encoder for which texts with an x have no embedding and spoil those beside them."""

    def __init__(self, encoder: Encoder, reach: int = 1) -> None:
        self.config = encoder.config
        self._encoder = encoder
        self._reach = reach
        self.num_texts = 0

    def encode(self, texts, *, task=None, dim=None, any_dim=False, progress=None):
        self.num_texts += len(texts)
        bad = [i for i, text in enumerate(texts) if "x" in text]
        spoilt = {i + by for i in bad for by in range(-self._reach, self._reach + 1)}
        if rows := sorted(spoilt & {*range(len(texts))}):
            raise NotFiniteError(rows)
        return self._encoder.encode(texts, task=task, dim=dim, progress=progress)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return Encoder.load(tiny_model, prepack=False, precision="float32")


@pytest.mark.parametrize("texts", [["a", "x", "b"], ["x"], ["x"] * 9, ["a"], [], ["x", "a"] * 8])
def test_only_texts_without_an_embedding_have_none(tiny, texts):
    found = encode_finite(SpoiltEncoder(tiny), texts, task="text-matching", dim=8)
    assert found.shape == (len(texts), 8)
    assert np.isfinite(found).all(1).tolist() == ["x" not in text for text in texts]
    good = [text for text in texts if "x" not in text]
    expected = tiny.encode(good, task="text-matching", dim=8)
    np.testing.assert_allclose(found[np.isfinite(found).all(1)], expected, atol=1e-5)


def test_a_model_without_any_embedding_is_not_asked_for_ever(tiny):
    encoder = SpoiltEncoder(tiny, reach=1_000)
    assert np.isnan(encode_finite(encoder, ["x"] * 1_000)).all()
    assert encoder.num_texts < 1_000 * 12


def test_rows_without_an_embedding_are_reported_and_the_others_keep_theirs(tiny):
    rows = [Row({"text": text}, "a.txt", i, "line") for i, text in enumerate(["a", "x", "b"], 1)]
    bad: list[BadRow] = []
    [(found, vectors)] = encode_rows(
        SpoiltEncoder(tiny),
        ((row, row.record["text"]) for row in rows),
        task=None,
        dim=None,
        report=bad.append,
    )
    assert [row.number for row in found] == [1, 3]
    np.testing.assert_allclose(vectors, tiny.encode(["a", "b"]), atol=1e-5)
    assert [(row.number, row.row) for row in bad] == [(2, {"text": "x"})]
    assert "no finite embedding" in bad[0].reason


def test_more_rows_than_a_window_keep_their_order(tiny, monkeypatch):
    monkeypatch.setattr("polyvec.row_encoding.MAX_BLOCK_TEXTS", 3)
    rows = [(Row({}, number=i), "fox " * (i % 4)) for i in range(8)]
    bad: list[BadRow] = []
    windows = list(encode_rows(tiny, rows, task=None, dim=None, report=bad.append))
    assert not bad
    assert [[row.number for row in found] for found, _ in windows] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    everything = np.concatenate([vectors for _, vectors in windows])
    np.testing.assert_allclose(everything, tiny.encode([text for _, text in rows]), atol=1e-5)
