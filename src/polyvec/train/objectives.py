"""What one step of each stage computes: `Work` for the loop.

Every stage comes down to one function, `backward`: share the step's texts out among the processes,
read them in chunks, and take the gradient of a loss over all their vectors.

Axes in this file: N texts, M bank, D width, T tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor

from polyvec.batch import make_batch
from polyvec.network import pool
from polyvec.train.data.tuples import append_tokens, draw_tuples
from polyvec.train.distributed import (
    Model,
    add_up,
    gather,
    hold,
    num_processes,
    plain,
    rank,
    share_out,
)
from polyvec.train.gradcache import backward_in_chunks
from polyvec.train.loop import Work
from polyvec.train.losses import (
    cosent,
    cosine_distance,
    distil,
    info_nce,
    matryoshka,
    separate,
)
from polyvec.train.masking import Vocabulary, hide_words

Tokens = Sequence[Int[np.ndarray, " _T"]]
"""Token ids of each text, special tokens included."""

Spans = Sequence[tuple[int, int]]
"""The part [start, end) of each text's tokens whose mean is its vector."""


def embed(
    network: Model, texts: Tokens, row: int | Sequence[int], spans: Spans | None = None
) -> Float[Tensor, "N D"]:
    """Mean hidden states of `texts`, or of a span of each, with their graph.

    One adapter reads them, or one each.
    """
    rows = [row] * len(texts) if isinstance(row, int) else row
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    hidden, lengths = _read(network, [texts[i] for i in order], [rows[i] for i in order])
    parts = [(0, len(text)) for text in texts] if spans is None else spans
    inside = torch.tensor([parts[i] for i in order], device=hidden.device)
    starts, ends = ((lengths.cumsum(0) - lengths)[:, None] + inside).T
    return pool(hidden, starts, ends)[torch.tensor(order).argsort().to(hidden.device)]


def _read(
    network: Model, texts: Tokens, rows: Sequence[int]
) -> tuple[Float[Tensor, "T D"], Int[Tensor, " N"]]:
    """Hidden states of texts laid end to end, and their lengths, on the network's device."""
    batch = make_batch(texts, rows)
    device = next(network.parameters()).device
    ids, lengths, adapters = (
        torch.from_numpy(part).long().to(device)
        for part in (batch.token_ids, batch.lengths, batch.adapter_ids)
    )
    return network(ids, lengths, adapters), lengths


def backward(
    network: Model,
    texts: Tokens,
    rows: Sequence[int],
    loss: Callable[[Float[Tensor, "N D"]], Float[Tensor, ""]],
    *,
    spans: Spans | None = None,
    max_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Add the gradient of `loss` of the vectors of `texts`; return the loss, detached.

    Text i is read by adapter rows[i], -1 for none, and its vector is that of `spans[i]` if there
    are any. Memory holds the activations of about `max_tokens` tokens (`train/gradcache.py`), or of
    all of them. In several processes `texts` are those of the whole step: each process reads its
    share, and sees the vectors of all.
    """
    shares = share_out([len(text) for text in texts], max_tokens)
    order = torch.from_numpy(np.concatenate([chunk for share in shares for chunk in share]))
    counts = [sum(map(len, share)) for share in shares]

    def encode(chunk: Int[np.ndarray, " _chunk"]) -> Float[Tensor, "_chunk D"]:
        parts = None if spans is None else [spans[i] for i in chunk]
        return embed(network, [texts[i] for i in chunk], [rows[i] for i in chunk], parts)

    def of_all(own: Float[Tensor, "_own D"]) -> Float[Tensor, ""]:
        return loss(gather(own, counts)[order.argsort().to(own.device)])

    return backward_in_chunks(encode, shares[rank()], of_all, hold=hold(network))


def masked_lm(
    network: Model,
    texts: Tokens,
    plan: Sequence[Int[np.ndarray, " _rows"]],
    vocabulary: Vocabulary,
    *,
    ratio: float = 0.15,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Work:
    """Stage 1: guess hidden words (`train/masking.py`); no adapter reads the texts.

    The loss is the mean over all hidden tokens of the step, in however many chunks of about
    `max_tokens` and processes it is computed.
    """

    def work(step: int) -> tuple[Tensor, int]:
        batch = [texts[i] for i in plan[step]]
        shown, hidden_at = hide_words(batch, vocabulary, ratio=ratio, seed=[seed, step])
        total = max(1, sum(len(places) for places in hidden_at))
        shares = share_out([len(text) for text in batch], max_tokens)
        value = torch.zeros(())
        for number, chunk in enumerate(shares[rank()]):
            with nullcontext() if number == len(shares[rank()]) - 1 else hold(network)():
                states, lengths = _read(network, [shown[i] for i in chunk], [-1] * len(chunk))
                starts = (lengths.cumsum(0) - lengths).tolist()
                places = np.concatenate(
                    [start + hidden_at[i] for start, i in zip(starts, chunk, strict=True)]
                )
                words = np.concatenate([batch[i][hidden_at[i]] for i in chunk])
                logits = plain(network).mlm_logits(
                    states[torch.from_numpy(places).to(states.device)]
                )
                target = torch.from_numpy(words).long().to(states.device)
                loss = F.cross_entropy(logits.float(), target, reduction="sum") / total
                # The mean over processes follows.
                (loss * num_processes()).backward()
                value = value.to(loss.device) + loss.detach()
        return add_up(value), sum(len(text) for text in batch)

    return work


def distillation(
    network: Model,
    texts: Tokens,
    targets: Int[np.ndarray, " N"],
    teachers: Float[np.ndarray, "M D"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    spans: Spans | None = None,
    dim_weights: Sequence[float] | None = None,
    bank_size: int = 2048,
    temperature: float = 0.05,
    pull: float = 2.0,
    max_tokens: int | None = None,
) -> Work:
    """Every text, in any language, goes where the teacher puts its English partner.

    Text i belongs to `teachers[targets[i]]`, or with `spans` that part of its tokens does, so that
    a passage means in a long document what it means alone. The loss is `pull` times the cosine
    distance to it, plus, at every Matryoshka dim, the divergence from the teacher's similarities
    to `bank_size` random teacher vectors (Reimers & Gurevych 2020, with similarities in place of
    squared error).
    """
    nested = matryoshka(distil, plain(network).config.dims, dim_weights)

    def work(step: int) -> tuple[Tensor, int]:
        rows = plan[step]
        batch = [texts[i] for i in rows]
        parts = None if spans is None else [spans[i] for i in rows]
        rng = np.random.default_rng(step)
        # The texts' own teachers come first, so that each has its answer in the bank.
        others = rng.integers(len(teachers), size=bank_size)
        near = teachers[np.concatenate([targets[rows], others])]
        bank = torch.from_numpy(near.astype(np.float32))

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            seen = bank.to(vectors.device)
            students, wanted = F.normalize(vectors, dim=-1), seen[: len(rows)]
            odds = F.softmax(wanted @ seen.T / temperature, dim=-1)
            spread = nested(students, seen, wanted=odds, temperature=temperature)
            return pull * cosine_distance(students, wanted) + spread

        bare = [-1] * len(batch)
        value = backward(network, batch, bare, loss, spans=parts, max_tokens=max_tokens)
        return value, sum(len(text) for text in batch)

    return work


def contrast(
    network: Model,
    queries: Tokens,
    documents: Tokens,
    groups: Int[np.ndarray, " N"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    rows: tuple[int, int] = (-1, -1),
    spans: Spans | None = None,
    negatives: Sequence[Tokens] | None = None,
    num_negatives: int = 1,
    temperature: float = 0.05,
    dim_weights: Sequence[float] | None = None,
    max_tokens: int | None = None,
) -> Work:
    """Query i belongs with document i and, unless of its group, with no other (`info_nce`).

    With `spans` it belongs with that part of the document's tokens, whose mean stands for it: span
    pooling, which trains what late chunking does (arXiv:2409.04701). `rows` are the
    adapters that read queries and documents. `negatives[i]` are texts that look like an answer to
    query i and are none; of those given, `num_negatives` a query are drawn each time. For
    classification a group is a class, so that two texts of a class are never pushed apart, or a
    tuple whose texts carry an id of its own (`train/tuples.py`).
    """
    nested = matryoshka(info_nce, plain(network).config.dims, dim_weights)

    def work(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        rng = np.random.default_rng(step)
        texts = [queries[i] for i in chosen] + [documents[i] for i in chosen]
        parts = [(0, len(text)) for text in texts]
        if spans is not None:
            parts[len(chosen) :] = [spans[i] for i in chosen]
        owners = list(groups[chosen])
        for hard in [] if negatives is None else [negatives[i] for i in chosen]:
            for place in rng.permutation(len(hard))[:num_negatives]:
                texts.append(hard[place])
                parts.append((0, len(hard[place])))
                owners.append(-1)
        adapters = [rows[0]] * len(chosen) + [rows[1]] * len(owners)

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            left, right = vectors.split([len(chosen), len(owners)])
            return nested(
                left,
                right,
                groups=torch.from_numpy(groups[chosen]).to(vectors.device),
                document_groups=torch.tensor(owners, device=vectors.device),
                temperature=temperature,
            )

        value = backward(network, texts, adapters, loss, spans=parts, max_tokens=max_tokens)
        return value, sum(len(text) for text in texts)

    return work


def tuples(
    network: Model,
    texts: Tokens,
    labels: Int[np.ndarray, " N"],
    tag: Callable[[int], Int32[np.ndarray, " _end"]],
    *,
    row: int,
    batch_size: int,
    longest: int,
    num_negatives: int = 7,
    temperature: float = 0.02,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Work:
    """A text, one of its class and `num_negatives` of others, against all texts of the step.

    Texts of one class meet in different tuples, as if they were unlike. So every tuple has an id,
    and `tag` gives its tokens, which its texts end with: whatever has another id is told apart by
    that alone, and teaches nothing (arXiv:2409.10173, section 4.3.2, after Lee et al. 2024). Texts
    stay within `longest` tokens.
    """
    nested = matryoshka(info_nce, plain(network).config.dims)

    def work(step: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng([seed, step])
        drawn = draw_tuples(labels, count=batch_size, num_negatives=num_negatives, rng=rng)
        tags = [tag(step * batch_size + number) for number in range(batch_size)]
        # Column by column: all queries, all positives, then the negatives.
        batch = [
            append_tokens(texts[i], end, max_tokens=longest)
            for column in drawn.T
            for i, end in zip(column, tags, strict=True)
        ]
        owners = torch.arange(batch_size * (1 + num_negatives))

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            left, right = vectors.split([batch_size, len(owners)])
            own = owners.to(vectors.device)
            return nested(
                left,
                right,
                groups=own[:batch_size],
                document_groups=own,
                temperature=temperature,
            )

        value = backward(network, batch, [row] * len(batch), loss, max_tokens=max_tokens)
        return value, sum(len(text) for text in batch)

    return work


def ordering(
    network: Model,
    left: Tokens,
    right: Tokens,
    scores: Float32[np.ndarray, " N"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    row: int,
    temperature: float = 0.05,
    max_tokens: int | None = None,
) -> Work:
    """Pairs with a higher gold score should have a higher cosine (`cosent`)."""
    nested = matryoshka(cosent, plain(network).config.dims)

    def work(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        texts = [side[i] for side in (left, right) for i in chosen]

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            gold = torch.from_numpy(scores[chosen]).to(vectors.device)
            return nested(*vectors.chunk(2), scores=gold, temperature=temperature)

        value = backward(network, texts, [row] * len(texts), loss, max_tokens=max_tokens)
        return value, sum(len(text) for text in texts)

    return work


def separation(
    network: Model,
    texts: Tokens,
    labels: Int[np.ndarray, " N"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    row: int,
    temperature: float = 0.02,
    max_tokens: int | None = None,
) -> Work:
    """Texts of one label should be more alike than texts of two (`separate`)."""
    nested = matryoshka(separate, plain(network).config.dims)

    def work(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        batch = [texts[i] for i in chosen]

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            own = torch.from_numpy(labels[chosen]).to(vectors.device)
            return nested(vectors, labels=own, temperature=temperature)

        value = backward(network, batch, [row] * len(batch), loss, max_tokens=max_tokens)
        return value, sum(len(text) for text in batch)

    return work


def take_turns(works: Sequence[Work], shares: Sequence[float], *, steps: int, seed: int) -> Work:
    """Data sets with losses of their own, one a step, each in its share of `steps`, at random.

    Each of `works` is asked for its own steps 0, 1, 2 and so on.
    """
    parts = np.asarray(shares) / np.sum(shares)
    turns = np.random.default_rng(seed).choice(len(works), size=steps, p=parts)
    earlier = [int((turns[:step] == turn).sum()) for step, turn in enumerate(turns)]

    def work(step: int) -> tuple[Tensor, int]:
        return works[turns[step]](earlier[step])

    return work
