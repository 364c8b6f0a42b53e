"""Vectors of fewer bits, as a vector database would keep them.

Axes in this file: B texts, C documents, D width.
"""

import numpy as np
from jaxtyping import Float, Float32

from polyvec.eval.protocol import Embed
from polyvec.outputs import to_int8, to_ubinary

CANDIDATES = 40
"""Documents that one search by bits passes on to be scored again: four times the ten counted."""


def as_int8(embed: Embed) -> Embed:
    """`embed` in one byte a number."""

    def rounded(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        whole = to_int8(embed(texts, adapter)).astype(np.float32)
        return whole / np.linalg.norm(whole, axis=1, keepdims=True)

    return rounded


def as_binary(embed: Embed) -> Embed:
    """`embed` in one bit a number; cosines of these rank as Hamming distances do."""
    return lambda texts, adapter: _signs(embed(texts, adapter))


def rescore(
    queries: Float[np.ndarray, "B D"], documents: Float[np.ndarray, "C D"]
) -> Float[np.ndarray, "B C"]:
    """Search by bits, then score what was found again by int8 documents and float queries.

    The `CANDIDATES` documents of smallest Hamming distance get their cosines with the query; the
    others follow in the order of their distances. (Yamada et al. 2021, arXiv:2106.00882, rescore
    with float queries and binary documents.)
    """
    by_bits = _signs(queries) @ _signs(documents).T
    whole = to_int8(documents.astype(np.float32)).astype(np.float32)
    cosines = queries @ (whole / np.linalg.norm(whole, axis=1, keepdims=True)).T
    if documents.shape[0] <= CANDIDATES:
        return cosines
    found = np.argpartition(-by_bits, CANDIDATES, axis=1)[:, :CANDIDATES]
    # Cosines lie in -1..1, so all that was not found comes after.
    scores = by_bits - 3
    np.put_along_axis(scores, found, np.take_along_axis(cosines, found, axis=1), axis=1)
    return scores


def _signs(vectors: Float[np.ndarray, "B D"]) -> Float32[np.ndarray, "B D"]:
    """1 where a number is positive and -1 elsewhere, at length 1."""
    bits = np.unpackbits(to_ubinary(vectors.astype(np.float32)), axis=1)
    return (2 * bits.astype(np.float32) - 1) / np.float32(vectors.shape[1] ** 0.5)
