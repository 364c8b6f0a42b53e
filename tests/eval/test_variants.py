"""Each variant of a model changes one thing."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from polyvec import Encoder
from polyvec.eval.variants import (
    NUM_RESCORED,
    as_binary,
    as_int8,
    at_base,
    cached,
    rescore,
    truncated,
    without_instructions,
)
from tests.eval.synthetic import WORDS, embed


def test_a_dim_is_a_prefix_at_length_one_and_no_text_is_encoded_twice() -> None:
    asked: list[str] = []

    def spy(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        asked.extend(texts)
        return embed(texts)

    memory = cached(spy)
    expected = embed(["ant bee", "cat"])[:, :4]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(truncated(memory, 4)(["ant bee", "cat"], None), expected, atol=1e-6)
    assert truncated(memory, 12)(["cat", "owl"], None).shape == (2, 12)
    assert asked == ["ant bee", "cat", "owl"]


def test_without_instructions_only_the_instruction_is_missing(tiny_model: Path) -> None:
    encoder = Encoder.load(tiny_model, device="cpu")
    plain = without_instructions(encoder)
    task = encoder.config.tasks[0]
    ours = plain.encode(["ant bee"], task=task.name)
    assert task.prompt
    assert not np.allclose(ours, encoder.encode(["ant bee"], task=task.name), atol=1e-4)
    both = plain.encode([task.prompt + "ant bee"], task=task.name)
    np.testing.assert_allclose(both, encoder.encode(["ant bee"], task=task.name), atol=1e-5)


def test_another_base_changes_long_texts_and_is_set_at_every_call(tiny_model: Path) -> None:
    encoder = Encoder.load(tiny_model, device="cpu")
    text = [" ".join(WORDS)]
    trained, read = at_base(encoder, 10_000.0), at_base(encoder, 20_000.0)
    first = trained(text, None)
    assert not np.allclose(first, read(text, None), atol=1e-5)
    np.testing.assert_allclose(trained(text, None), first, atol=1e-6)


def test_fewer_bits_keep_directions_and_rescoring_reorders_the_best() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def look_up(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        return vectors[[int(text) for text in texts]]

    names = [str(i) for i in range(200)]
    assert ((as_int8(look_up)(names, None) * vectors).sum(1) > 0.9995).all()
    bits = as_binary(look_up)(names, None)
    hamming = (np.sign(vectors[:5, None]) != np.sign(vectors[None])).sum(2)
    np.testing.assert_allclose(bits[:5] @ bits.T, 1 - hamming / 32, atol=1e-6)

    queries = vectors[:5] + 0.5 * rng.normal(size=(5, 64)).astype(np.float32) / 8
    scores = rescore(queries, vectors)
    exact = queries @ vectors.T
    # Compared as rows of ranks: the first ones by cosine, the rest by bits alone.
    for row, (score, cosine) in enumerate(zip(scores, exact, strict=True)):
        order = np.argsort(-score)
        found, rest = order[:NUM_RESCORED], order[NUM_RESCORED:]
        np.testing.assert_allclose(score[found], cosine[found], atol=0.01)
        distances = (np.sign(queries[row]) != np.sign(vectors)).sum(1)
        assert distances[found].max() <= distances[rest].min()
        assert (np.diff(distances[rest]) >= 0).all()
    few = rescore(queries, vectors[:10])
    np.testing.assert_allclose(few, exact[:, :10], atol=0.01)
