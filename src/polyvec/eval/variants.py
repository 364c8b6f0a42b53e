"""Variants of a model that `polyvec eval` compares: embedding functions with one thing changed.

Axes in this file: B texts, C documents, D width.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float32

from polyvec.encoder import Encoder
from polyvec.eval.models import encoder_embed
from polyvec.eval.protocol import Embed, cosines
from polyvec.outputs import to_int8, to_ubinary, truncate_and_normalise
from polyvec.tasks import Task

NUM_RESCORED = 40
"""Documents of a binary search that are scored again, four times the ten that nDCG@10 counts."""


def cached(embed: Embed) -> Embed:
    """Return `embed` with a cache, so that no text is embedded twice with one adapter."""
    vectors: dict[tuple[str | None, str], Float32[np.ndarray, " D"]] = {}

    def look_up(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        if new := [text for text in texts if (adapter, text) not in vectors]:
            for text, vector in zip(new, embed(new, adapter), strict=True):
                vectors[adapter, text] = vector
        return np.stack([vectors[adapter, text] for text in texts])

    return look_up


def truncated(embed: Embed, dim: int) -> Embed:
    """Return `embed` with its vectors cut to the first `dim` numbers and normalised again."""
    return lambda texts, adapter: truncate_and_normalise(embed(texts, adapter), dim)


def at_base(encoder: Encoder, base: float) -> Embed:
    """Return `encoder` as a function that uses `base` for its rotary position embeddings."""
    embed = encoder_embed(encoder)

    def embed_at_base(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        encoder.engine.rope_base = base
        return embed(texts, adapter)

    return embed_at_base


def without_instructions(encoder: Encoder) -> Encoder:
    """Return `encoder` with its adapters, but without instructions in front of the texts."""
    tasks = tuple(Task(task.name) for task in encoder.config.tasks)
    return Encoder(replace(encoder.config, tasks=tasks), encoder.tokenizer, encoder.engine)


def as_int8(embed: Embed) -> Embed:
    """Return `embed` with each number of its vectors rounded to one byte."""
    return lambda texts, adapter: _rounded(embed(texts, adapter))


def as_binary(embed: Embed) -> Embed:
    """Return `embed` with each number reduced to its sign.

    Cosines of these vectors rank like Hamming distances of the bits.
    """
    return lambda texts, adapter: _signs(embed(texts, adapter))


def rescore(
    queries: Float[np.ndarray, "B D"], documents: Float[np.ndarray, "C D"]
) -> Float[np.ndarray, "B C"]:
    """Score documents by a binary search whose best results are scored again.

    1. Documents are ranked by the Hamming distance to the query.
    2. The best `NUM_RESCORED` get the cosine of the float query and the int8 document as score.
    3. All others follow in the order of their distances.

    Yamada et al. 2021 (arXiv:2106.00882) rescore with float queries and binary documents.
    """
    exact = cosines(queries, _rounded(documents.astype(np.float32)))
    if documents.shape[0] <= NUM_RESCORED:
        return exact
    by_bits = cosines(_signs(queries), _signs(documents))
    best = np.argpartition(-by_bits, NUM_RESCORED, axis=1)[:, :NUM_RESCORED]
    # Cosines lie in -1..1, so every document that is not rescored comes after those that are.
    scores = by_bits - 3
    np.put_along_axis(scores, best, np.take_along_axis(exact, best, axis=1), axis=1)
    return scores


def _rounded(vectors: Float32[np.ndarray, "B D"]) -> Float32[np.ndarray, "B D"]:
    rounded = to_int8(vectors).astype(np.float32)
    return rounded / np.linalg.norm(rounded, axis=1, keepdims=True)


def _signs(vectors: Float[np.ndarray, "B D"]) -> Float32[np.ndarray, "B D"]:
    """Return vectors of length 1 whose numbers are all equal but for their signs."""
    bits = np.unpackbits(to_ubinary(vectors.astype(np.float32)), axis=1)
    return (2 * bits.astype(np.float32) - 1) / np.float32(vectors.shape[1] ** 0.5)
