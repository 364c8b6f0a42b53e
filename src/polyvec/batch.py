"""Packed batches: texts of any length laid end to end, with no padding.

Axes in this file: B texts, T tokens in the whole batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A packed batch of texts: the input of one forward pass."""

    token_ids: Int32[np.ndarray, " T"]
    """Token ids of all texts, concatenated."""

    lengths: Int32[np.ndarray, " B"]
    """Number of tokens of each text; they sum to T and none is 0."""

    adapter_ids: Int32[np.ndarray, " B"]
    """Index of each text's adapter, -1 for none. One batch may mix tasks."""

    @property
    def ends(self) -> Int32[np.ndarray, " B"]:
        """End offset of each text in `token_ids`."""
        return np.cumsum(self.lengths, dtype=np.int32)

    @property
    def starts(self) -> Int32[np.ndarray, " B"]:
        """Start offset of each text in `token_ids`."""
        return self.ends - self.lengths


def make_batch(
    texts: Sequence[Sequence[int] | Int32[np.ndarray, " _"]], adapter_ids: Sequence[int]
) -> Batch:
    """Concatenate lists of token ids; `adapter_ids` has the adapter index of each text.

    >>> make_batch([[0, 7, 2], [0, 2]], [1, -1]).ends.tolist()
    [3, 5]
    """
    assert len(texts) == len(adapter_ids)
    lengths = np.array([len(text) for text in texts], np.int32)
    assert lengths.all(), "a text has at least its two special tokens"
    token_ids = np.concatenate([np.asarray(text, np.int32) for text in texts])
    return Batch(
        token_ids=token_ids, lengths=lengths, adapter_ids=np.asarray(adapter_ids, np.int32)
    )


def pack(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Group texts, longest first, so that no group exceeds `max_tokens`.

    Yields lists of positions in `lengths`. A text longer than `max_tokens` is a group alone.

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


CALL_COST_TOKENS = 24
"""Cost of one more call of the network, as the number of tokens that cost as much."""


def split_by_length(
    lengths: Int32[np.ndarray, " B"], width: int, max_tokens: int
) -> Iterator[Int32[np.ndarray, " N"]]:
    """Group texts, longest first, so that no group wastes much attention on padding.

    This is for engines whose attention pads every text to the longest of its group. A group ends
    when padding has wasted as much work as another call costs, or when it would exceed
    `max_tokens`. Yields positions in `lengths`.

    >>> [group.tolist() for group in split_by_length(np.int32([900, 9, 8, 910]), 32, 10**6)]
    [[3], [0], [1, 2]]
    """
    group: list[int] = []
    longest = tokens = wasted = 0
    # Attention costs 4 * width per pair of tokens; the rest costs 24 * width**2 per token.
    limit = CALL_COST_TOKENS * 6 * width
    for position in np.argsort(-lengths, kind="stable"):
        length = int(lengths[position])
        waste = longest**2 - length**2
        if group and (wasted + waste > limit or tokens + length > max_tokens):
            yield np.array(group, np.int32)
            group, tokens, wasted = [], 0, 0
        if not group:
            longest, waste = length, 0
        group.append(int(position))
        tokens += length
        wasted += waste
    if group:
        yield np.array(group, np.int32)


def select(batch: Batch, texts: Int32[np.ndarray, " N"]) -> tuple[Batch, Int32[np.ndarray, " T"]]:
    """A batch of some of a batch's texts, and the positions of its tokens in the whole batch.

    >>> select(make_batch([[0, 7, 2], [0, 2]], [1, -1]), np.int32([1]))[1].tolist()
    [3, 4]
    """
    starts, ends = batch.starts.tolist(), batch.ends.tolist()
    tokens = np.concatenate([np.arange(starts[i], ends[i], dtype=np.int32) for i in texts])
    part = Batch(
        token_ids=batch.token_ids[tokens],
        lengths=batch.lengths[texts],
        adapter_ids=batch.adapter_ids[texts],
    )
    return part, tokens
