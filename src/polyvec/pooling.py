"""Pooling: from one vector per token to one vector per span of tokens.

A text that is longer than the model's longest input is encoded in overlapping windows (long late
chunking, arXiv:2409.04701, section 3.3):

1. Windows of equal size cover the tokens. Each begins `overlap` tokens before the end of the last.
2. The first tokens of a later window lack their left context there. They keep the hidden states of
   the previous window.
3. Every span is the mean of its tokens, which may be in several windows.

Axes in this file: T tokens, S spans, W spans in one window, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float32, Int, Int32

from polyvec.batch import Batch, make_batch

Pool = Callable[
    [Batch, Int32[np.ndarray, " S"], Int32[np.ndarray, " S"]], Float32[np.ndarray, "S D"]
]
"""Returns the mean hidden state of each span of a batch: `Engine.pool`."""


def pool_spans(
    hidden: Float32[np.ndarray, "T D"],
    starts: Int32[np.ndarray, " S"],
    ends: Int32[np.ndarray, " S"],
) -> Float32[np.ndarray, "S D"]:
    """Average the hidden states of each span [start, end).

    One span per text is mean pooling. Several spans per text is late chunking
    (Günther et al. 2024, arXiv:2409.04701): the encoder has read the whole text, so each chunk's
    vector knows its context. Spans may overlap. Raises ValueError for an empty span and for one
    outside the tokens.

    >>> pool_spans(np.float32([[1], [3], [5]]), np.int32([0, 2]), np.int32([2, 3])).tolist()
    [[2.0], [5.0]]
    """
    if (ends <= starts).any():
        raise ValueError("every span must hold at least one token")
    if len(starts) and (starts.min() < 0 or ends.max() > len(hidden)):
        raise ValueError(f"a span lies outside the {len(hidden)} tokens")
    # Along the first axis numpy adds one by one, so 8,192 terms would lose digits in float32.
    means = [
        hidden[start:end].mean(0, dtype=np.float64).astype(np.float32)
        for start, end in zip(starts, ends, strict=True)
    ]
    return np.stack(means) if means else np.empty((0, hidden.shape[1]), np.float32)


def cut_windows(num_tokens: int, size: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Yield windows of `size` tokens: start, end, and the first token whose hidden state is kept.

    >>> list(cut_windows(10, size=6, overlap=3))
    [(0, 6, 0), (3, 9, 6), (6, 10, 9)]
    """
    if overlap < 0 or overlap >= size < num_tokens:
        raise ValueError(f"overlap is {overlap}, must be in 0..{size - 1}, below the window")
    start = kept = 0
    while kept < num_tokens:
        end = min(start + size, num_tokens)
        yield start, end, kept
        start, kept = start + size - overlap, end


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A part of a long text that is encoded at once, and what it adds to the means of the spans."""

    start: int
    """First token."""

    end: int
    """Token after the last one."""

    spans: Int[np.ndarray, " W"]
    """Positions of the spans that have tokens in this window and in no earlier one."""

    starts: Int32[np.ndarray, " W"]
    """First of these tokens for each span, counted from the start of the window."""

    ends: Int32[np.ndarray, " W"]
    """Token after the last of them."""

    shares: Float32[np.ndarray, " W"]
    """These tokens as a fraction of the span's tokens."""

    def add_to(self, means: Float32[np.ndarray, "S D"], parts: Float32[np.ndarray, "W D"]) -> None:
        """Add the mean hidden states of this window's parts to the means of the whole spans."""
        means[self.spans] += parts * self.shares[:, None]


def plan_windows(
    num_tokens: int,
    starts: Int32[np.ndarray, " S"],
    ends: Int32[np.ndarray, " S"],
    *,
    window: int,
    overlap: int,
) -> Iterator[Window]:
    """Yield the windows of a text, in order, with the parts of the spans that each one pools.

    Spans may overlap and be in any order; none may be empty.
    """
    order = np.argsort(starts, kind="stable")
    sorted_starts = starts[order]
    open_spans, num_seen = order[:0], 0
    for start, end, kept in cut_windows(num_tokens, window, overlap):
        reached = int(np.searchsorted(sorted_starts, end))
        waiting = open_spans[ends[open_spans] > kept]
        open_spans = np.concatenate([waiting, order[num_seen:reached]])
        num_seen = reached
        firsts = np.maximum(starts[open_spans], kept) - start
        lasts = np.minimum(ends[open_spans], end) - start
        shares = ((lasts - firsts) / (ends - starts)[open_spans]).astype(np.float32)
        yield Window(
            start, end, open_spans, firsts.astype(np.int32), lasts.astype(np.int32), shares
        )


def pool_windows(
    pool: Pool,
    token_ids: Int32[np.ndarray, " T"],
    adapter_id: int,
    starts: Int32[np.ndarray, " S"],
    ends: Int32[np.ndarray, " S"],
    *,
    window: int,
    overlap: int,
    batch_tokens: int,
    report: Callable[[int], object] = lambda num_tokens: None,
) -> Float32[np.ndarray, "S D"]:
    """The mean hidden state of each span of one text of any length.

    `batch_tokens` is the number of tokens that `pool` gets at once. `report` is called after each
    batch with the number of new tokens. Time is linear in the number of tokens; memory holds one
    batch and the means. Spans may overlap and be in any order; none may be empty.
    """
    windows = plan_windows(len(token_ids), starts, ends, window=window, overlap=overlap)
    means, done = None, 0
    while group := list(islice(windows, max(batch_tokens // window, 1))):
        texts = [token_ids[one.start : one.end] for one in group]
        batch = make_batch(texts, [adapter_id] * len(texts))
        # From positions in a window to positions in the batch.
        offsets = batch.starts.tolist()
        lefts = [one.starts + np.int32(offset) for one, offset in zip(group, offsets, strict=True)]
        rights = [one.ends + np.int32(offset) for one, offset in zip(group, offsets, strict=True)]
        parts = pool(batch, np.concatenate(lefts), np.concatenate(rights))
        if means is None:
            means = np.zeros((len(starts), parts.shape[1]), np.float32)
        edges = np.cumsum([len(one.spans) for one in group])[:-1]
        for one, own_parts in zip(group, np.split(parts, edges), strict=True):
            one.add_to(means, own_parts)
        report(group[-1].end - done)
        done = group[-1].end
    assert means is not None, "a text has at least its two special tokens"
    return means
