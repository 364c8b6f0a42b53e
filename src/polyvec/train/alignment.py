"""Line up two translations of one list of texts, from each of which some lines were dropped.

Axes in this file: N lines of one list, M lines of the other.
"""

import numpy as np
from jaxtyping import Float32


def align(likeness: Float32[np.ndarray, "N M"], *, least: float) -> list[tuple[int, int]]:
    """The pairs (i, j), both rising, whose likeness above `least` adds up to most.

    Lines without a partner are left out. Needleman & Wunsch (1970) with no cost for gaps, a row at
    a time: best[i, j] is the larger of best[i, j - 1], and of best[i - 1, j] or, one further along
    the diagonal, best[i - 1, j - 1] + gain[i, j].

    >>> align(np.float32([[0.9, 0.0, 0.1], [0.0, 0.2, 0.8]]), least=0.3)
    [(0, 0), (1, 2)]
    """
    num_rows, num_columns = likeness.shape
    gain = np.maximum(likeness - np.float32(least), 0)
    best = np.zeros((num_rows + 1, num_columns + 1), np.float32)
    for i in range(num_rows):
        best[i + 1, 1:] = np.maximum(best[i, 1:], best[i, :-1] + gain[i])
        np.maximum.accumulate(best[i + 1], out=best[i + 1])
    pairs = []
    i, j = num_rows, num_columns
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]
