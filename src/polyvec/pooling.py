"""Pooling: from one vector per token to one vector per span of tokens.

A text that is longer than the model's longest input is encoded in overlapping windows (long late
chunking, arXiv:2409.04701, section 3.3):

1. Windows of equal size cover the tokens. Each begins `overlap` tokens before the end of the last.
2. The first tokens of a later window lack their left context there. They keep the hidden states of
   the previous window.
3. Every span is the mean of its tokens, which may be in several windows.

Axes in this file: T tokens, S spans, D width.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int32

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
    order = np.argsort(starts, kind="stable")
    sorted_starts = starts[order]
    means = None
    open_spans, num_seen = order[:0], 0
    for group in _group(list(cut_windows(len(token_ids), window, overlap)), batch_tokens // window):
        texts, firsts, lasts, owners = [], [], [], []
        offset = 0
        for start, end, kept in group:
            reached = int(np.searchsorted(sorted_starts, end))
            waiting = open_spans[ends[open_spans] > kept]
            open_spans = np.concatenate([waiting, order[num_seen:reached]])
            num_seen = reached
            texts.append(token_ids[start:end])
            # From positions in the text to positions in the batch.
            firsts.append(np.maximum(starts[open_spans], kept) - start + offset)
            lasts.append(np.minimum(ends[open_spans], end) - start + offset)
            owners.append(open_spans)
            offset += end - start
        left, right, owner = (np.concatenate(parts) for parts in (firsts, lasts, owners))
        batch = make_batch(texts, [adapter_id] * len(texts))
        parts = pool(batch, left.astype(np.int32), right.astype(np.int32))
        if means is None:
            means = np.zeros((len(starts), parts.shape[1]), np.float32)
        share = ((right - left) / (ends - starts)[owner]).astype(np.float32)
        # With `+=`, a span that two windows of the group share would be added only once.
        np.add.at(means, owner, parts * share[:, None])
        report(group[-1][1] - group[0][2])
    assert means is not None, "a text has at least its two special tokens"
    return means


def _group(
    windows: Sequence[tuple[int, int, int]], size: int
) -> Iterator[Sequence[tuple[int, int, int]]]:
    for first in range(0, len(windows), max(size, 1)):
        yield windows[first : first + max(size, 1)]
