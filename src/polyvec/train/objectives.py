"""Objectives: one `StepFn` for each stage, which the loop calls once per step.

All objectives use `backward`, except masked language modelling: it shards the step's texts over
the processes, encodes them in chunks, and takes the gradient of a loss over all embeddings.

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
from polyvec.tasks import NO_ADAPTER
from polyvec.train.data.answers import find_answers, mark_answers
from polyvec.train.data.batches import Plan, plan_sources
from polyvec.train.data.tokens import Spans, TokenIds
from polyvec.train.data.tuples import append_tokens, draw_tuples
from polyvec.train.distributed import (
    Model,
    all_gather,
    all_reduce_sum,
    no_sync,
    num_processes,
    rank,
    shard_texts,
    unwrap,
)
from polyvec.train.gradcache import backward_in_chunks
from polyvec.train.loop import StepFn
from polyvec.train.losses import (
    Loss,
    cosent,
    cosine_distance,
    distil,
    info_nce,
    matryoshka,
    separate,
)
from polyvec.train.masking import Vocabulary, mask_words


def embed(
    network: Model,
    texts: TokenIds,
    adapter_ids: int | Sequence[int],
    spans: Spans | None = None,
) -> Float[Tensor, "N D"]:
    """Mean hidden state of each text, or of one span of each text, with its graph.

    `adapter_ids` is one adapter for all texts, or one for each text.
    """
    ids = [adapter_ids] * len(texts) if isinstance(adapter_ids, int) else adapter_ids
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    hidden, lengths = _encode(network, [texts[i] for i in order], [ids[i] for i in order])
    parts = [(0, len(text)) for text in texts] if spans is None else spans
    inside = torch.tensor([parts[i] for i in order], device=hidden.device)
    starts, ends = ((lengths.cumsum(0) - lengths)[:, None] + inside).T
    return pool(hidden, starts, ends)[torch.tensor(order).argsort().to(hidden.device)]


def _encode(
    network: Model, texts: TokenIds, adapter_ids: Sequence[int]
) -> tuple[Float[Tensor, "T D"], Int[Tensor, " N"]]:
    """Hidden states of all texts, text after text, and the texts' lengths."""
    batch = make_batch(texts, adapter_ids)
    device = next(network.parameters()).device
    ids, lengths, adapters = (
        torch.from_numpy(part).long().to(device)
        for part in (batch.token_ids, batch.lengths, batch.adapter_ids)
    )
    return network(ids, lengths, adapters), lengths


def backward(
    network: Model,
    texts: TokenIds,
    adapter_ids: Sequence[int],
    loss: Callable[[Float[Tensor, "N D"]], Float[Tensor, ""]],
    *,
    spans: Spans | None = None,
    chunk_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Add the gradient of `loss` to the parameters; return the loss, detached.

    `loss` receives the embeddings of all `texts`. Adapter `adapter_ids[i]` encodes text i
    (`NO_ADAPTER` for none). With `spans`, the embedding of text i is that of `spans[i]`. Memory
    holds the activations of about `chunk_tokens` tokens at a time (`train/gradcache.py`), or of all
    texts if it is None. In several processes, `texts` are those of the whole step: each process
    encodes its shard and receives the embeddings of all.
    """
    shards = shard_texts([len(text) for text in texts], chunk_tokens)
    order = torch.from_numpy(np.concatenate([chunk for shard in shards for chunk in shard]))
    counts = [sum(map(len, shard)) for shard in shards]

    def encode(chunk: Int[np.ndarray, " _chunk"]) -> Float[Tensor, "_chunk D"]:
        parts = None if spans is None else [spans[i] for i in chunk]
        return embed(network, [texts[i] for i in chunk], [adapter_ids[i] for i in chunk], parts)

    def loss_of_all(own: Float[Tensor, "_own D"]) -> Float[Tensor, ""]:
        return loss(all_gather(own, counts)[order.argsort().to(own.device)])

    return backward_in_chunks(encode, shards[rank()], loss_of_all, no_sync=no_sync(network))


def masked_lm(
    network: Model,
    texts: TokenIds,
    plan: Plan,
    vocabulary: Vocabulary,
    *,
    ratio: float = 0.15,
    chunk_tokens: int | None = None,
    seed: int = 0,
) -> StepFn:
    """Stage 1: predict masked words (`train/masking.py`), without an adapter.

    The loss is the mean over all masked tokens of the step. It does not depend on the number of
    chunks, of about `chunk_tokens` tokens each, or on the number of processes.
    """

    def step_fn(step: int) -> tuple[Tensor, int]:
        batch = [texts[i] for i in plan[step]]
        masked, positions = mask_words(batch, vocabulary, ratio=ratio, seed=[seed, step])
        total = max(1, sum(map(len, positions)))
        chunks = shard_texts([len(text) for text in batch], chunk_tokens)[rank()]
        value = torch.zeros(())
        for number, chunk in enumerate(chunks):
            with nullcontext() if number == len(chunks) - 1 else no_sync(network)():
                no_adapter = [NO_ADAPTER] * len(chunk)
                states, lengths = _encode(network, [masked[i] for i in chunk], no_adapter)
                starts = (lengths.cumsum(0) - lengths).tolist()
                places = np.concatenate(
                    [start + positions[i] for start, i in zip(starts, chunk, strict=True)]
                )
                words = np.concatenate([batch[i][positions[i]] for i in chunk])
                logits = unwrap(network).mlm_logits(
                    states[torch.from_numpy(places).to(states.device)]
                )
                target = torch.from_numpy(words).long().to(states.device)
                loss = F.cross_entropy(logits.float(), target, reduction="sum") / total
                # PyTorch then takes the mean over processes.
                (loss * num_processes()).backward()
                value = value.to(loss.device) + loss.detach()
        return all_reduce_sum(value), sum(len(text) for text in batch)

    return step_fn


def distillation(
    network: Model,
    texts: TokenIds,
    targets: Int[np.ndarray, " N"],
    teachers: Float[np.ndarray, "M D"],
    plan: Plan,
    *,
    spans: Spans | None = None,
    dim_weights: Sequence[float] | None = None,
    bank_size: int = 2048,
    temperature: float = 0.05,
    cosine_weight: float = 2.0,
    chunk_tokens: int | None = None,
) -> StepFn:
    """Stage 2: train each text's embedding to equal a teacher's embedding, without an adapter.

    The target of text i is `teachers[targets[i]]`. With `spans`, only that part of the text has
    this target, so that a passage has the same embedding in a long document as alone. The loss is
    `cosine_weight` times the cosine distance to the target, plus, at every Matryoshka dim, the
    divergence from the teacher's similarities to `bank_size` random teacher embeddings (Reimers &
    Gurevych 2020, with similarities in place of the squared error).
    """
    nested = matryoshka(distil, unwrap(network).config.dims, dim_weights)

    def step_fn(step: int) -> tuple[Tensor, int]:
        rows = plan[step]
        batch = [texts[i] for i in rows]
        parts = None if spans is None else [spans[i] for i in rows]
        rng = np.random.default_rng(step)
        # The targets of the step come first, so that the bank contains every text's own target.
        others = rng.integers(len(teachers), size=bank_size)
        chosen = teachers[np.concatenate([targets[rows], others])]
        teacher_bank = torch.from_numpy(chosen.astype(np.float32))

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            bank = teacher_bank.to(vectors.device)
            students, wanted = F.normalize(vectors, dim=-1), bank[: len(rows)]
            odds = F.softmax(wanted @ bank.T / temperature, dim=-1)
            divergence = nested(students, bank, wanted=odds, temperature=temperature)
            return cosine_weight * cosine_distance(students, wanted) + divergence

        no_adapter = [NO_ADAPTER] * len(batch)
        value = backward(network, batch, no_adapter, loss, spans=parts, chunk_tokens=chunk_tokens)
        return value, sum(len(text) for text in batch)

    return step_fn


def contrast(
    network: Model,
    queries: TokenIds,
    documents: TokenIds,
    groups: Int[np.ndarray, " N"],
    plan: Plan,
    *,
    adapter_ids: tuple[int, int] = (NO_ADAPTER, NO_ADAPTER),
    spans: Spans | None = None,
    negatives: Sequence[TokenIds] | None = None,
    num_negatives: int = 1,
    temperature: float = 0.05,
    dim_weights: Sequence[float] | None = None,
    chunk_tokens: int | None = None,
) -> StepFn:
    """InfoNCE: query i matches document i and no document of another group (`info_nce`).

    `adapter_ids` are the adapters that encode queries and documents. With `spans`, query i matches
    that part of document i, whose mean hidden state stands for it: span pooling, which trains late
    chunking (arXiv:2409.04701). `negatives[i]` are hard negatives of query i; each step draws
    `num_negatives` of them per query. A document that answers a query (`find_answers`) is not among
    its negatives, whichever row has it. For classification, a group is a class, so that two texts
    of a class are never negatives, or a tuple whose texts end with the tuple's id
    (`train/data/tuples.py`).
    """
    nested = matryoshka(info_nce, unwrap(network).config.dims, dim_weights)
    answers = find_answers(queries, documents, groups, spans)

    def step_fn(step: int) -> tuple[Tensor, int]:
        rows = plan[step]
        rng = np.random.default_rng(step)
        texts = [queries[i] for i in rows] + [documents[i] for i in rows]
        parts = [(0, len(text)) for text in texts]
        if spans is not None:
            parts[len(rows) :] = [spans[i] for i in rows]
        owners = list(groups[rows])
        for hard in [] if negatives is None else [negatives[i] for i in rows]:
            for place in rng.permutation(len(hard))[:num_negatives]:
                texts.append(hard[place])
                parts.append((0, len(hard[place])))
                owners.append(-1)
        adapters = [adapter_ids[0]] * len(rows) + [adapter_ids[1]] * len(owners)
        read = [
            text[start:end]
            for text, (start, end) in zip(texts[len(rows) :], parts[len(rows) :], strict=True)
        ]
        marks = torch.from_numpy(mark_answers(groups[rows], read, answers))

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            left, right = vectors.split([len(rows), len(owners)])
            return nested(
                left,
                right,
                groups=torch.from_numpy(groups[rows]).to(vectors.device),
                document_groups=torch.tensor(owners, device=vectors.device),
                answers=marks.to(vectors.device),
                temperature=temperature,
            )

        value = backward(network, texts, adapters, loss, spans=parts, chunk_tokens=chunk_tokens)
        return value, sum(len(text) for text in texts)

    return step_fn


def tuples(
    network: Model,
    texts: TokenIds,
    labels: Int[np.ndarray, " N"],
    id_tokens: Callable[[int], Int32[np.ndarray, " _end"]],
    *,
    adapter_id: int,
    batch_size: int,
    max_tokens: int,
    num_negatives: int = 7,
    temperature: float = 0.02,
    chunk_tokens: int | None = None,
    seed: int = 0,
) -> StepFn:
    """InfoNCE on tuples: a text, another text of its class, and `num_negatives` of other classes.

    Texts of one class also meet as negatives, when they are in different tuples. For this reason
    every tuple has an id, and `id_tokens` returns the tokens with which all its texts end: a text
    of another tuple differs by its id alone, so nothing is learnt from it (arXiv:2409.10173,
    section 4.3.2, after Lee et al. 2024). Texts with their id have at most `max_tokens` tokens.
    """
    nested = matryoshka(info_nce, unwrap(network).config.dims)

    def step_fn(step: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng([seed, step])
        drawn = draw_tuples(labels, count=batch_size, num_negatives=num_negatives, rng=rng)
        tuple_ids = [id_tokens(step * batch_size + number) for number in range(batch_size)]
        # Column after column: all queries, all positives, then the negatives.
        batch = [
            append_tokens(texts[i], end, max_tokens=max_tokens)
            for column in drawn.T
            for i, end in zip(column, tuple_ids, strict=True)
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

        adapters = [adapter_id] * len(batch)
        value = backward(network, batch, adapters, loss, chunk_tokens=chunk_tokens)
        return value, sum(len(text) for text in batch)

    return step_fn


def ordering(
    network: Model,
    left: TokenIds,
    right: TokenIds,
    scores: Float32[np.ndarray, " N"],
    plan: Plan,
    *,
    adapter_id: int,
    temperature: float = 0.05,
    chunk_tokens: int | None = None,
) -> StepFn:
    """CoSENT: pairs with a higher gold score should have a higher cosine (`cosent`)."""
    nested = matryoshka(cosent, unwrap(network).config.dims)

    def step_fn(step: int) -> tuple[Tensor, int]:
        rows = plan[step]
        texts = [side[i] for side in (left, right) for i in rows]

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            gold = torch.from_numpy(scores[rows]).to(vectors.device)
            return nested(*vectors.chunk(2), scores=gold, temperature=temperature)

        adapters = [adapter_id] * len(texts)
        value = backward(network, texts, adapters, loss, chunk_tokens=chunk_tokens)
        return value, sum(len(text) for text in texts)

    return step_fn


def score_distillation(
    network: Model,
    queries: TokenIds,
    documents: Sequence[TokenIds],
    scores: Sequence[Float32[np.ndarray, " _documents"]],
    plan: Plan,
    *,
    loss: Loss,
    adapter_ids: tuple[int, int] = (NO_ADAPTER, NO_ADAPTER),
    chunk_tokens: int | None = None,
) -> StepFn:
    """Train the cosines of query i with its `documents[i]` to follow a teacher's `scores[i]`.

    The teacher may be a cross-encoder. The loss is `margin_mse` or `score_divergence`.
    """
    nested = matryoshka(loss, unwrap(network).config.dims)

    def step_fn(step: int) -> tuple[Tensor, int]:
        rows = plan[step]
        texts = [queries[i] for i in rows] + [text for i in rows for text in documents[i]]
        owners = np.repeat(np.arange(len(rows)), [len(documents[i]) for i in rows])
        wanted = np.concatenate([scores[i] for i in rows])

        def loss_of(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            return nested(
                *vectors.split([len(rows), len(owners)]),
                owners=torch.from_numpy(owners).to(vectors.device),
                scores=torch.from_numpy(wanted).to(vectors.device),
            )

        adapters = [adapter_ids[0]] * len(rows) + [adapter_ids[1]] * len(owners)
        value = backward(network, texts, adapters, loss_of, chunk_tokens=chunk_tokens)
        return value, sum(len(text) for text in texts)

    return step_fn


def separation(
    network: Model,
    texts: TokenIds,
    labels: Int[np.ndarray, " N"],
    plan: Plan,
    *,
    adapter_id: int,
    temperature: float = 0.02,
    chunk_tokens: int | None = None,
) -> StepFn:
    """CoSENT: texts of one label should be more similar than texts of two (`separate`)."""
    nested = matryoshka(separate, unwrap(network).config.dims)

    def step_fn(step: int) -> tuple[Tensor, int]:
        rows = plan[step]
        batch = [texts[i] for i in rows]

        def loss(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            own = torch.from_numpy(labels[rows]).to(vectors.device)
            return nested(vectors, labels=own, temperature=temperature)

        adapters = [adapter_id] * len(batch)
        value = backward(network, batch, adapters, loss, chunk_tokens=chunk_tokens)
        return value, sum(len(text) for text in batch)

    return step_fn


def alternate(
    step_fns: Sequence[StepFn], weights: Sequence[float], *, steps: int, seed: int
) -> StepFn:
    """One of several objectives per step, at random in proportion to `weights`.

    Each of `step_fns` is called with its own step numbers 0, 1, 2 and so on.
    """
    turns = plan_sources(weights, steps=steps, seed=seed)

    def step_fn(step: int) -> tuple[Tensor, int]:
        source, number = turns[step]
        return step_fns[source](number)

    return step_fn
