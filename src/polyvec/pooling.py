"""From one vector per token to one vector per span of tokens.

A text longer than the model reads at once is read in windows that overlap (long late chunking,
arXiv:2409.04701, section 3.3):

1. Windows of equal size cover the tokens; each starts `overlap` tokens before the last one ends.
2. The first tokens of a later window, whose left context it lacks, keep the hidden states that
   the window before gave them.
3. Every span is the mean of its tokens, whichever windows they are in.

Axes in this file: T tokens, S spans, D width.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from polyvec.batch import Batch, make_batch

Pool = Callable[
    [Batch, Int32[np.ndarray, " S"], Int32[np.ndarray, " S"]], Float32[np.ndarray, "S D"]
]
"""The mean hidden states of a batch's spans, as `Engine.pool` gives them."""


def pool_spans(
    hidden: Float32[np.ndarray, "T D"],
    starts: Int32[np.ndarray, " S"],
    ends: Int32[np.ndarray, " S"],
) -> Float32[np.ndarray, "S D"]:
    """Average the hidden states of each span [start, end).

    One span per text is mean pooling. Several spans per text is late chunking
    (Günther et al. 2024, arXiv:2409.04701): the encoder read the whole text, so each chunk's
    vector knows its context. Spans may overlap; an empty one is a ValueError.

    >>> pool_spans(np.float32([[1], [3], [5]]), np.int32([0, 2]), np.int32([2, 3])).tolist()
    [[2.0], [5.0]]
    """
    if (ends <= starts).any():
        raise ValueError("every span must hold at least one token")
    if len(starts) and (starts.min() < 0 or ends.max() > len(hidden)):
        raise ValueError(f"a span lies outside the {len(hidden)} tokens")
    # Along the first axis numpy adds one by one: in float32, 8,192 terms would lose digits.
    means = [
        hidden[start:end].mean(0, dtype=np.float64).astype(np.float32)
        for start, end in zip(starts, ends, strict=True)
    ]
    return np.stack(means) if means else np.empty((0, hidden.shape[1]), np.float32)


def cut_windows(num_tokens: int, size: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Windows of `size` tokens: start, end, and the first token whose hidden state is kept.

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
    row: int,
    starts: Int32[np.ndarray, " S"],
    ends: Int32[np.ndarray, " S"],
    *,
    window: int,
    overlap: int,
    batch_tokens: int,
    read: Callable[[int], object] = lambda tokens: None,
) -> Float32[np.ndarray, "S D"]:
    """The mean hidden state of each span of one text of any length.

    `row` is the adapter, `batch_tokens` how many tokens go to `pool` at once, and `read` is told
    how many new tokens were read. Time is linear in the tokens; memory holds one batch, and the
    means. Spans may overlap and come in any order; none may be empty.
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
        batch = make_batch(texts, [row] * len(texts))
        parts = pool(batch, left.astype(np.int32), right.astype(np.int32))
        if means is None:
            means = np.zeros((len(starts), parts.shape[1]), np.float32)
        share = ((right - left) / (ends - starts)[owner]).astype(np.float32)
        # Not `+=`: a span that two windows of the group share would be added once.
        np.add.at(means, owner, parts * share[:, None])
        read(group[-1][1] - group[0][2])
    assert means is not None, "a text has at least its two special tokens"
    return means


def _group(
    windows: Sequence[tuple[int, int, int]], size: int
) -> Iterator[Sequence[tuple[int, int, int]]]:
    for first in range(0, len(windows), max(size, 1)):
        yield windows[first : first + max(size, 1)]
