"""Embeddings after pooling: truncation, norm, compact encodings, similarity.

Axes in this file: N and M vectors, D size of a vector, dim a Matryoshka size, bytes = D / 8,
S chunks.
"""

import base64
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Int8, Int32, UInt8


class NotFiniteError(ValueError):
    """Some texts have no usable embedding; `rows` are their positions in the caller's list."""

    def __init__(self, rows: list[int], what: str = "text") -> None:
        super().__init__(
            f"the model returned NaN, infinite or only zero values for {what} {name_rows(rows)} "
            f"(counted from 0): check the checkpoint, or leave these {what}s out"
        )
        self.rows = rows


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """The chunks of one document with their embeddings."""

    document: str
    """The whole text; a list of chunks is joined by spaces."""

    offsets: Int32[np.ndarray, "S 2"]
    """The characters [start, end) of each chunk in `document`."""

    vectors: Float32[np.ndarray, "S dim"]
    """The embedding of each chunk, of length 1."""

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def texts(self) -> list[str]:
        """The text of each chunk."""
        return [self.document[start:end] for start, end in self.offsets.tolist()]


def truncate_and_normalise(
    vectors: Float32[np.ndarray, "N D"], dim: int
) -> Float32[np.ndarray, "N dim"]:
    """The first `dim` numbers of each vector, scaled to length 1.

    Truncation comes first, because truncating a normalised vector would change its length.
    Raises ValueError unless there are two axes and `dim` is in 1..D. Raises NotFiniteError, naming
    every row that contains NaN or infinity, or only zeros in the first `dim` numbers.

    >>> truncate_and_normalise(np.float32([[3, 4, 12]]), 2).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    check_axes(vectors)
    width = vectors.shape[1]
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or not 1 <= dim <= width:
        raise ValueError(f"dim is {dim!r}, must be a whole number in 1..{width}")
    kept = vectors[:, :dim]
    # Dividing by the largest number first avoids overflow and underflow of the squares. The numbers
    # that are cut off must be finite too.
    largest = np.abs(vectors).max(1, keepdims=True, initial=0)
    bad = ~np.isfinite(largest[:, 0]) | ~kept.any(1)
    if bad.any():
        raise NotFiniteError(np.flatnonzero(bad).tolist())
    scaled = kept / np.abs(kept).max(1, keepdims=True, initial=0)
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def to_int8(vectors: Float32[np.ndarray, "N D"]) -> Int8[np.ndarray, "N D"]:
    """Each vector as integers, scaled so that its largest magnitude is 127.

    The scale differs between vectors and is not kept, because cosines do not need it. Raises
    ValueError for a vector of zeros, and for NaN and infinity.

    >>> to_int8(np.float32([[0.6, -0.8]])).tolist()
    [[95, -127]]
    """
    check_finite(vectors)
    largest = np.abs(vectors).max(1, keepdims=True, initial=0)
    if (largest == 0).any():
        zeros = name_rows(np.flatnonzero(largest == 0).tolist())
        raise ValueError(f"vector {zeros} (counted from 0) has only zeros, and no int8 form")
    # Dividing first avoids overflow: 127 divided by a tiny number would be infinite.
    return np.rint(vectors / largest * 127).astype(np.int8)


def to_float16(vectors: Float32[np.ndarray, "N D"]) -> Float16[np.ndarray, "N D"]:
    """Each number in half of the bytes. Cosines of unit vectors change by less than 0.001.

    Raises ValueError for NaN and infinity, and for numbers that float16 does not hold.

    >>> to_float16(np.float32([[0.6, -0.8]])).tolist()
    [[0.60009765625, -0.7998046875]]
    """
    check_finite(vectors)
    if np.abs(vectors).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError("a number beyond 65,504 has no float16 form; normalise the vectors first")
    return vectors.astype(np.float16)


def to_ubinary(vectors: Float32[np.ndarray, "N D"]) -> UInt8[np.ndarray, "N bytes"]:
    """One bit per number, 1 if it is positive; eight bits to a byte, the first number highest.

    Raises ValueError unless D is a multiple of 8, and for NaN and infinity.

    >>> to_ubinary(np.float32([[1, -1, -1, -1, -1, -1, 1, 1]])).tolist()
    [[131]]
    """
    check_finite(vectors)
    if vectors.shape[1] % 8:
        raise ValueError(f"binary vectors need a multiple of 8 numbers, not {vectors.shape[1]}")
    return np.packbits(vectors > 0, axis=1)


def to_binary(vectors: Float32[np.ndarray, "N D"]) -> Int8[np.ndarray, "N bytes"]:
    """`to_ubinary` minus 128, as Jina's API and sentence-transformers return it.

    >>> to_binary(np.float32([[1, -1, -1, -1, -1, -1, 1, 1]])).tolist()
    [[3]]
    """
    return (to_ubinary(vectors).astype(np.int16) - 128).astype(np.int8)


def to_base64(vectors: Float32[np.ndarray, "N D"]) -> list[str]:
    """The little-endian float32 bytes of each vector in base64, as OpenAI's API returns them.

    Raises ValueError unless there are two axes, and for NaN and infinity.

    >>> to_base64(np.float32([[1, 0]]))
    ['AACAPwAAAAA=']
    """
    check_finite(vectors)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in vectors.astype("<f4")]


def similarity(
    a: Float32[np.ndarray, "N D"], b: Float32[np.ndarray, "M D"]
) -> Float32[np.ndarray, "N M"]:
    """The cosine of every vector of `a` with every vector of `b`.

    Raises ValueError if their vectors differ in size, and NotFiniteError as
    `truncate_and_normalise` does.

    >>> similarity(np.float32([[2, 0]]), np.float32([[5, 0], [0, 1]])).tolist()
    [[1.0, 0.0]]
    """
    check_axes(a)
    check_axes(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"vectors of {a.shape[1]} and of {b.shape[1]} numbers have no cosine")
    return truncate_and_normalise(a, a.shape[1]) @ truncate_and_normalise(b, b.shape[1]).T


def check_axes(vectors: np.ndarray) -> None:
    """Raise ValueError unless the array has two axes: one row per vector."""
    shape = np.shape(vectors)
    if len(shape) != 2:
        raise ValueError(
            f"an array of the shape {shape} was given instead of one row per vector; a single "
            "vector is vector[None]"
        )


def check_finite(vectors: np.ndarray) -> None:
    """Raise ValueError unless the array has one row per vector, and no NaN or infinity."""
    check_axes(vectors)
    finite = np.isfinite(vectors)
    if not finite.all():
        bad = name_rows(np.flatnonzero(~finite.all(1)).tolist())
        raise ValueError(f"vector {bad} (counted from 0) has NaN or infinite numbers")


def name_rows(rows: list[int]) -> str:
    """The first ten positions, for a message."""
    return ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
