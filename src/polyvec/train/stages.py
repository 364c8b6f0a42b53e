"""What one step of each stage computes: `Work` for the loop.

Axes in this file: N texts, M bank, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor

from polyvec.batch import make_batch
from polyvec.network import Network, pool
from polyvec.train.loop import Work
from polyvec.train.losses import (
    cosent,
    cosine_distance,
    distil,
    info_nce,
    matryoshka,
    separate,
)

Tokens = Sequence[Int[np.ndarray, " _T"]]
"""Token ids of each text, special tokens included."""


def embed(network: Network, texts: Tokens, row: int) -> Float[Tensor, "N D"]:
    """Mean hidden states of `texts` read by one adapter, with their graph."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batch = make_batch([texts[i] for i in order], [row] * len(texts))
    lengths, rows = torch.from_numpy(batch.lengths).long(), torch.from_numpy(batch.rows).long()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network(torch.from_numpy(batch.token_ids).long(), lengths, rows)
    ends = lengths.cumsum(0)
    return pool(hidden, ends - lengths, ends)[torch.tensor(order).argsort()]


def distillation(
    network: Network,
    texts: Tokens,
    targets: Int[np.ndarray, " N"],
    teachers: Float32[np.ndarray, "M D"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    dim_weights: Sequence[float] | None = None,
    bank_size: int = 2048,
    temperature: float = 0.05,
    pull: float = 2.0,
) -> Work:
    """Every text, in any language, goes where the teacher puts its English partner.

    Text i belongs to `teachers[targets[i]]`. The loss is `pull` times the cosine distance to it,
    plus, at every Matryoshka dim, the divergence from the teacher's similarities to `bank_size`
    random teacher vectors (Reimers & Gurevych 2020, with similarities in place of squared error).
    """
    nested = matryoshka(distil, network.config.dims, dim_weights)

    def work(step: int) -> tuple[Tensor, int]:
        rows = plan[step]
        batch = [texts[i] for i in rows]
        students = F.normalize(embed(network, batch, row=-1), dim=-1)
        wanted = torch.from_numpy(teachers[targets[rows]].astype(np.float32))
        rng = np.random.default_rng(step)
        # The texts' own teachers come first, so that each has its answer in the bank.
        others = rng.integers(len(teachers), size=bank_size)
        near = np.concatenate([targets[rows], others])
        bank = torch.from_numpy(teachers[near].astype(np.float32))
        seen = F.softmax(wanted @ bank.T / temperature, dim=-1)
        loss = pull * cosine_distance(students, wanted)
        loss = loss + nested(students, bank, wanted=seen, temperature=temperature)
        loss.backward()
        return loss.detach(), sum(len(text) for text in batch)

    return work


def contrast(
    network: Network,
    queries: Tokens,
    documents: Tokens,
    groups: Int[np.ndarray, " N"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    rows: tuple[int, int] = (-1, -1),
    negatives: Sequence[Tokens] | None = None,
    temperature: float = 0.05,
) -> Work:
    """Query i belongs with document i and, unless of its group, with no other (`info_nce`).

    `rows` are the adapters that read queries and documents. `negatives[i]` are texts that look
    like an answer to query i and are none; as many as are given, one a query is drawn each time.
    For classification a group is a class, so that two texts of a class are never pushed apart.
    """
    nested = matryoshka(info_nce, network.config.dims)

    def work(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        rng = np.random.default_rng(step)
        left = [queries[i] for i in chosen]
        right = [documents[i] for i in chosen]
        owners = list(groups[chosen])
        for hard in [] if negatives is None else [negatives[i] for i in chosen]:
            if len(hard):
                right.append(hard[rng.integers(len(hard))])
                owners.append(-1)
        loss = nested(
            embed(network, left, rows[0]),
            embed(network, right, rows[1]),
            groups=torch.from_numpy(groups[chosen]),
            document_groups=torch.tensor(owners),
            temperature=temperature,
        )
        loss.backward()
        return loss.detach(), sum(len(text) for text in left + right)

    return work


def ordering(
    network: Network,
    left: Tokens,
    right: Tokens,
    scores: Float32[np.ndarray, " N"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    row: int,
    temperature: float = 0.05,
) -> Work:
    """Pairs with a higher gold score should have a higher cosine (`cosent`)."""
    nested = matryoshka(cosent, network.config.dims)

    def work(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        texts = [side[i] for side in (left, right) for i in chosen]
        vectors = embed(network, texts, row)
        gold = torch.from_numpy(scores[chosen])
        loss = nested(*vectors.chunk(2), scores=gold, temperature=temperature)
        loss.backward()
        return loss.detach(), sum(len(text) for text in texts)

    return work


def separation(
    network: Network,
    texts: Tokens,
    labels: Int[np.ndarray, " N"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    row: int,
    temperature: float = 0.02,
) -> Work:
    """Texts of one label should be more alike than texts of two (`separate`)."""
    nested = matryoshka(separate, network.config.dims)

    def work(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        batch = [texts[i] for i in chosen]
        vectors = embed(network, batch, row)
        loss = nested(vectors, labels=torch.from_numpy(labels[chosen]), temperature=temperature)
        loss.backward()
        return loss.detach(), sum(len(text) for text in batch)

    return work
