"""What happens to vectors after pooling: truncation, norm, small encodings, similarity.

Axes in this file: N and M vectors, D numbers in a vector, dim a Matryoshka size, bytes = D / 8,
S chunks.
"""

import base64
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int8, Int32, UInt8


class NotFiniteError(ValueError):
    """Some texts have no usable vector; `rows` are their positions among the caller's texts."""

    def __init__(self, rows: list[int], what: str = "text") -> None:
        named = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        super().__init__(
            f"the model gave NaN, infinite or all-zero numbers for {what} {named} "
            f"(counted from 0): check the checkpoint, or leave these {what}s out"
        )
        self.rows = rows


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """The chunks of one document, each with its vector."""

    document: str
    """What was read; a list of chunks is joined by spaces."""

    offsets: Int32[np.ndarray, "S 2"]
    """Each chunk's characters [start, end) in `document`."""

    vectors: Float32[np.ndarray, "S dim"]
    """Each chunk's vector, of length 1."""

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def texts(self) -> list[str]:
        """Each chunk's own text."""
        return [self.document[start:end] for start, end in self.offsets.tolist()]


def truncate_and_normalise(
    vectors: Float32[np.ndarray, "N D"], dim: int
) -> Float32[np.ndarray, "N dim"]:
    """The first `dim` numbers of each vector, scaled to length 1.

    In this order: normalising first would leave truncated vectors of every length.
    Raises NotFiniteError, naming every row that holds NaN or infinity or has no direction.

    >>> truncate_and_normalise(np.float32([[3, 4, 12]]), 2).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    kept = vectors[:, :dim]
    # Scaled by the largest number first: squares of very large or small ones would over- or
    # underflow. A number cut off must be finite too.
    largest = np.abs(vectors).max(1, keepdims=True, initial=0)
    bad = ~np.isfinite(largest[:, 0]) | ~kept.any(1)
    if bad.any():
        raise NotFiniteError(np.flatnonzero(bad).tolist())
    scaled = kept / np.abs(kept).max(1, keepdims=True, initial=0)
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def to_int8(vectors: Float32[np.ndarray, "N D"]) -> Int8[np.ndarray, "N D"]:
    """Each vector as whole numbers in -127..127, its largest number at the end of the range.

    The scale differs from vector to vector and is not kept: cosines do not need it.

    >>> to_int8(np.float32([[0.6, -0.8]])).tolist()
    [[95, -127]]
    """
    largest = np.abs(vectors).max(1, keepdims=True, initial=0)
    if (largest == 0).any():
        raise ValueError("a vector of zeros has no int8 form")
    return np.rint(vectors * (127 / largest)).astype(np.int8)


def to_ubinary(vectors: Float32[np.ndarray, "N D"]) -> UInt8[np.ndarray, "N bytes"]:
    """One bit a number, 1 where it is positive; eight to a byte, the first number highest.

    Raises ValueError unless D is a multiple of 8.

    >>> to_ubinary(np.float32([[1, -1, -1, -1, -1, -1, 1, 1]])).tolist()
    [[131]]
    """
    if vectors.shape[1] % 8:
        raise ValueError(f"binary vectors need a multiple of 8 numbers, not {vectors.shape[1]}")
    return np.packbits(vectors > 0, axis=1)


def to_binary(vectors: Float32[np.ndarray, "N D"]) -> Int8[np.ndarray, "N bytes"]:
    """`to_ubinary` minus 128, as Jina's API and sentence-transformers give it.

    >>> to_binary(np.float32([[1, -1, -1, -1, -1, -1, 1, 1]])).tolist()
    [[3]]
    """
    return (to_ubinary(vectors).astype(np.int16) - 128).astype(np.int8)


def to_base64(vectors: Float32[np.ndarray, "N D"]) -> list[str]:
    """Each vector's little-endian float32 bytes in base64, as OpenAI's API gives it.

    >>> to_base64(np.float32([[1, 0]]))
    ['AACAPwAAAAA=']
    """
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in vectors.astype("<f4")]


def similarity(
    a: Float32[np.ndarray, "N D"], b: Float32[np.ndarray, "M D"]
) -> Float32[np.ndarray, "N M"]:
    """The cosine of every vector of `a` with every vector of `b`.

    >>> similarity(np.float32([[2, 0]]), np.float32([[5, 0], [0, 1]])).tolist()
    [[1.0, 0.0]]
    """
    return truncate_and_normalise(a, a.shape[1]) @ truncate_and_normalise(b, b.shape[1]).T


def find_turns(vectors: Float32[np.ndarray, "N D"], percentile: int) -> list[int]:
    """Where a series of unit vectors turns: rows whose distance from the row before is large.

    Large is above the distances' `percentile`. Greg Kamradt's semantic splitting, as LlamaIndex
    has it.

    >>> find_turns(np.float32([[1, 0], [1, 0], [0, 1], [0, 1]]), 60)
    [2]
    """
    if len(vectors) < 2:
        return []
    distances = 1 - (vectors[1:] * vectors[:-1]).sum(1)
    return (1 + np.flatnonzero(distances > np.percentile(distances, percentile))).tolist()
