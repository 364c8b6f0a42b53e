"""Packed batches: texts of any length laid end to end, with no padding.

Axes in this file: B texts, T tokens in the whole batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What an engine reads."""

    token_ids: Int32[np.ndarray, " T"]
    """Every text's tokens, one text after another."""

    lengths: Int32[np.ndarray, " B"]
    """Tokens in each text; they sum to T and none is 0."""

    rows: Int32[np.ndarray, " B"]
    """The adapter row that reads each text, -1 for none: one batch may mix tasks."""

    @property
    def ends(self) -> Int32[np.ndarray, " B"]:
        """Where each text stops, as an index into `token_ids`."""
        return np.cumsum(self.lengths, dtype=np.int32)

    @property
    def starts(self) -> Int32[np.ndarray, " B"]:
        """Where each text starts, as an index into `token_ids`."""
        return self.ends - self.lengths


def make_batch(texts: Sequence[Sequence[int]], rows: Sequence[int]) -> Batch:
    """Lay token lists end to end; `rows` gives each text's adapter.

    >>> make_batch([[0, 7, 2], [0, 2]], [1, -1]).ends.tolist()
    [3, 5]
    """
    assert len(texts) == len(rows)
    lengths = np.array([len(text) for text in texts], np.int32)
    assert lengths.all(), "a text has at least its two special tokens"
    token_ids = np.concatenate([np.asarray(text, np.int32) for text in texts])
    return Batch(token_ids=token_ids, lengths=lengths, rows=np.asarray(rows, np.int32))


def pack(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Group texts, longest first, so that no group exceeds `max_tokens`.

    Yields lists of positions in `lengths`. A text longer than the budget travels alone.

    >>> list(pack([5, 1, 9, 3], max_tokens=10))
    [[2], [0, 3, 1]]
    """
    group: list[int] = []
    total = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and total + lengths[position] > max_tokens:
            yield group
            group, total = [], 0
        group.append(position)
        total += lengths[position]
    if group:
        yield group
