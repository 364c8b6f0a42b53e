"""A token table that lines up languages before any attention is trained.

A teacher knows what to do with the input vectors of its own words. This gives every piece of a new
vocabulary an input vector in the same space, so that the teacher's blocks can read it:

1. An English text is a bag: the sum of its words' input vectors, rare words weighing more.
2. The pieces of the text, and of its translations, are trained to sum to the same bag
   (cosine, and InfoNCE against the other texts of the batch).
3. A piece starts from the teacher's word of the same spelling, or else from the average bag of the
   texts it occurs in.

Axes in this file: N texts, T tokens in a batch, V vocabulary, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor
from tqdm import trange

Tokens = Sequence[Sequence[int] | Int[np.ndarray, " _T"]]
"""Token ids of each text."""

RARE = 1e-3
"""The a of a / (a + p(token)), the weight of a token of frequency p (Arora et al. 2017)."""


def token_weights(texts: Tokens, vocab_size: int) -> Float32[np.ndarray, " V"]:
    """How much each token counts in a bag: near 1 where it is rare, near 0 where it is everywhere.

    >>> [round(float(w), 3) for w in token_weights([[0, 1, 0, 2]], vocab_size=4)]
    [0.002, 0.004, 0.004, 1.0]
    """
    counts = np.bincount(np.concatenate([np.asarray(text) for text in texts]), minlength=vocab_size)
    return (RARE / (RARE + counts / counts.sum())).astype(np.float32)


def bags(
    texts: Tokens,
    table: Float32[np.ndarray, "V D"],
    weights: Float32[np.ndarray, " V"],
) -> Float32[np.ndarray, "N D"]:
    """The weighted sum of each text's token vectors, at unit length."""
    out = np.empty((len(texts), table.shape[1]), np.float32)
    for start in range(0, len(texts), 4096):
        ids, offsets = _flatten(texts[start : start + 4096])
        bag = F.embedding_bag(
            ids,
            torch.from_numpy(table),
            offsets,
            mode="sum",
            per_sample_weights=torch.from_numpy(weights)[ids],
        )
        out[start : start + 4096] = F.normalize(bag, dim=-1)
    return out


def average_bags(
    texts: Tokens, targets: Float32[np.ndarray, "N D"], vocab_size: int
) -> Float32[np.ndarray, "V D"]:
    """For each token the mean target of the texts it occurs in; zero where it occurs in none."""
    sums = np.zeros((vocab_size, targets.shape[1]), np.float32)
    counts = np.zeros(vocab_size, np.float32)
    for text, target in zip(texts, targets, strict=True):
        ids = np.unique(np.asarray(text))
        # A long text says little about any one of its tokens.
        sums[ids] += target / len(ids)
        counts[ids] += 1 / len(ids)
    return sums / np.maximum(counts, 1e-9)[:, None]


def fit_table(
    table: Float32[np.ndarray, "V D"],
    texts: Tokens,
    targets: Float32[np.ndarray, "N D"],
    groups: Int[np.ndarray, " N"],
    weights: Float32[np.ndarray, " V"],
    *,
    steps: int,
    batch_size: int = 1024,
    learning_rate: float = 0.02,
    temperature: float = 0.05,
    seed: int = 0,
) -> Float32[np.ndarray, "V D"]:
    """Train `table` so that each text's bag points to its target; texts of one group never repel.

    Adagrad with a state a row, so that a rare piece moves as surely as a common one and none is
    pushed on by momentum long after it was last seen.
    """
    rows = torch.nn.Parameter(torch.from_numpy(table.copy()))
    optimizer = torch.optim.Adagrad([rows], lr=learning_rate)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(texts))
    scale = torch.from_numpy(weights)
    for step in trange(steps, desc="token table", unit="batch", disable=None):
        chosen = order[np.arange(step * batch_size, (step + 1) * batch_size) % len(order)]
        batch = [np.asarray(texts[i], np.int64) for i in chosen]
        ids = torch.from_numpy(np.concatenate(batch))
        text = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(b) for b in batch]))
        # Only a row's direction counts, as it will behind the layer norm.
        tokens = F.normalize(F.embedding(ids, rows, sparse=True), dim=-1) * scale[ids, None]
        bag = rows.new_zeros(len(batch), rows.shape[1]).index_add(0, text, tokens)
        bag, target = F.normalize(bag, dim=-1), torch.from_numpy(targets[chosen])
        group = torch.from_numpy(groups[chosen])
        loss = _distance(bag, target, group, temperature)
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        with torch.sparse.check_sparse_tensor_invariants(False):
            optimizer.step()
    return F.normalize(rows.detach(), dim=-1).numpy()


def _distance(
    bag: Float[Tensor, "N D"], target: Float[Tensor, "N D"], group: Int[Tensor, " N"], tau: float
) -> Float[Tensor, ""]:
    scores = bag @ target.T
    same = (group[:, None] == group) & ~torch.eye(len(group), dtype=torch.bool)
    logits = (scores / tau).masked_fill(same, -torch.inf)
    return (1 - scores.diagonal()).mean() + 0.1 * F.cross_entropy(logits, torch.arange(len(group)))


def _flatten(texts: Tokens) -> tuple[Tensor, Tensor]:
    lengths = np.array([len(text) for text in texts])
    offsets = torch.from_numpy(np.cumsum(lengths) - lengths)
    return torch.from_numpy(np.concatenate([np.asarray(text, np.int64) for text in texts])), offsets
