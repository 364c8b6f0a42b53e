"""Quantised weights: matrices kept in fewer bits than the numbers that they stand for.

This file says what a quantised matrix is, how it is made, and how a file stores it. Apart from it,
only the CPU engine knows the format (`OpenVINOEngine._constant`), because it multiplies in 8 bits.
Everything else calls `to_float` or `gather_rows`. A second format needs a class and its branches
in the functions of this file, and a branch in the engine.

Axes in this file: O rows, I columns, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int8, Int32

SCALES = ".scales"
"""Suffix of the name under which a file stores the scales of an 8-bit matrix."""


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """A matrix of 8-bit integers with one scale per row: row o is `values[o] * scales[o]`."""

    values: Int8[np.ndarray, "O I"]
    scales: Float32[np.ndarray, " O"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.values.shape

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that hold the matrix in memory."""
        return self.values, self.scales

    def to_float(self) -> Float32[np.ndarray, "O I"]:
        """The matrix in float32: a new array, four times as large."""
        return self.values * self.scales[:, None]

    def rows(self, ids: Int32[np.ndarray, " T"]) -> Float32[np.ndarray, "T I"]:
        """Some rows in float32."""
        return self.values[ids] * self.scales[ids, None]


Weight = np.ndarray | Int8Matrix
"""A tensor in float32, float16 or bfloat16 (`ml_dtypes`), or a quantised matrix."""

Weights = dict[str, Weight]
"""Canonical names to tensors."""


def to_float(weight: Weight) -> np.ndarray:
    """A weight in float32. It shares memory with `weight` if that is float32 already."""
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(weight, np.float32)
    return weight.to_float()


def gather_rows(matrix: Weight, ids: Int32[np.ndarray, " T"]) -> Float32[np.ndarray, "T I"]:
    """Some rows of a matrix as a new float32 array; the other rows are never read from disk."""
    if isinstance(matrix, np.ndarray):
        return matrix[ids].astype(np.float32)
    return matrix.rows(ids)


def quantise(weight: Weight) -> Int8Matrix:
    """A matrix in the format that `save_compact` writes; unchanged if it is quantised already."""
    return quantise_rows(weight) if isinstance(weight, np.ndarray) else weight


def quantise_rows(matrix: Float[np.ndarray, "O I"]) -> Int8Matrix:
    """The nearest matrix of 8-bit integers in -127..127 with one scale per row.

    No number changes by more than half its row's scale, which is 1/254 of the row's largest.
    """
    wide = matrix.astype(np.float32)
    scales = np.abs(wide).max(axis=1, initial=0) / np.float32(127)
    safe = np.where(scales > 0, scales, np.float32(1))
    values = np.rint(wide / safe[:, None]).clip(-127, 127).astype(np.int8)
    return Int8Matrix(values, scales)


def to_tensors(name: str, matrix: Int8Matrix) -> dict[str, np.ndarray]:
    """The tensors that store a quantised matrix in a file, by their names there."""
    return {name: matrix.values, name + SCALES: matrix.scales}


def from_tensors(name: str, values: np.ndarray, take: Callable[[str], np.ndarray | None]) -> Weight:
    """The weight that a file stores as `values` under `name`; a plain tensor is returned as it is.

    `take` gives the file's other tensors by name, or None. Raises ValueError if a quantised
    tensor's scales are missing or do not fit, or if it is not a matrix.
    """
    if values.dtype != np.int8:
        return values
    scales = take(name + SCALES)
    if scales is None or scales.dtype != np.float32 or scales.shape != values.shape[:1]:
        raise ValueError(f"8-bit tensor {name!r} lacks its float32 scale per row")
    if values.ndim != 2:
        raise ValueError(f"tensor {name!r} may not be in 8 bits")
    return Int8Matrix(values, scales)
