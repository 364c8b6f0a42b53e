"""Training of the sparse and the multi-vector head, as in BGE-M3 (arXiv:2402.03216, section 3.2).

1. Encode the queries and the documents of a step once.
2. Score every query against every document in three ways: by the cosine of the embeddings, by the
   sparse token weights, and by MaxSim of the token vectors.
3. Train each head so that its scores find the answer (`info_nce`) and agree with the weighted sum
   of all three (`self_distil`), which is better than any of them.

Axes in this file: N queries or texts, M documents, P pieces in a batch, T tokens, D width,
V numbers in a token vector.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from polyvec.batch import make_batch
from polyvec.network import Network, maxsim, pool
from polyvec.tasks import NO_ADAPTER
from polyvec.train.data.answers import find_answers, mark_answers
from polyvec.train.data.batches import Plan
from polyvec.train.data.tokens import TokenIds
from polyvec.train.loop import StepFn
from polyvec.train.losses import Scalar, info_nce

TEACHER_WEIGHTS = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
"""Weight of each kind of score in the sum that teaches the heads, as in BGE-M3."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadOutputs:
    """Outputs of the network for N texts, with their graph. Tensors of absent heads are empty."""

    dense: Float[Tensor, "N D"]
    """Embeddings, as unit vectors."""

    weights: Float[Tensor, " T"]
    """Sparse weights of the texts' own tokens, without special ones."""

    ids: Int[Tensor, " T"]
    """Pieces of these tokens."""

    texts: Int[Tensor, " T"]
    """Text of each of these tokens, as a position."""

    vectors: Float[Tensor, "_T V"]
    """Token vectors of the texts' own tokens and of their `</s>`, text after text."""

    lengths: Int[Tensor, " N"]
    """Number of token vectors of each text."""


def run_heads(
    network: Network,
    texts: TokenIds,
    adapter_id: int,
    *,
    num_prompt: int | Sequence[int],
    ignored: Collection[int],
) -> HeadOutputs:
    """All outputs for `texts`, encoded with one adapter.

    `num_prompt` is the number of tokens before a text's own tokens, which are `<s>` and the
    instruction; it is one number for all texts or one for each. Pieces in `ignored` have no sparse
    weight (`Tokenizer.special_ids`).
    """
    device = network.embeddings.word.weight.device
    batch = make_batch(texts, [adapter_id] * len(texts))
    ids, lengths, adapters = (
        torch.from_numpy(array).long().to(device)
        for array in (batch.token_ids, batch.lengths, batch.adapter_ids)
    )
    hidden = network(ids, lengths, adapters)
    ends = lengths.cumsum(0)
    text = torch.arange(len(texts), device=device).repeat_interleave(lengths)
    position = torch.arange(len(ids), device=device)
    last = position == ends[text] - 1
    prompts = torch.tensor(num_prompt, device=device).expand(len(texts))
    own = (position >= (ends - lengths + prompts)[text]) & ~last
    weighed = own & ~torch.isin(ids, torch.tensor(sorted(ignored), device=device))
    weights, vectors = hidden[:0, 0], hidden[:0]
    if network.sparse is not None:
        weights = network.token_weights(hidden[weighed])
    else:
        weighed = torch.zeros_like(weighed)
    if network.multi_vector is not None:
        vectors = network.token_vectors(hidden[own | last])
    return HeadOutputs(
        F.normalize(pool(hidden, ends - lengths, ends), dim=-1),
        weights,
        ids[weighed],
        text[weighed],
        vectors,
        torch.bincount(text[own | last], minlength=len(texts)),
    )


def score_outputs(
    network: Network, queries: HeadOutputs, documents: HeadOutputs
) -> dict[str, Float[Tensor, "N M"]]:
    """Scores of every query against every document, by each output that the network has."""
    scores = {"dense": queries.dense @ documents.dense.T}
    if network.sparse is not None:
        scores["sparse"] = sparse_scores(queries, documents)
    if network.multi_vector is not None:
        scores["multi_vector"] = maxsim(
            queries.vectors, queries.lengths, documents.vectors, documents.lengths
        )
    return scores


def sparse_scores(queries: HeadOutputs, documents: HeadOutputs) -> Float[Tensor, "N M"]:
    """Dot products of the sparse weights, as `Sparse.dot` computes them, with their gradient."""
    _, pieces = torch.unique(torch.cat([queries.ids, documents.ids]), return_inverse=True)
    num_pieces = int(pieces.max()) + 1 if len(pieces) else 1
    sides = []
    for side, columns in zip(
        (queries, documents), pieces.split([len(queries.ids), len(documents.ids)]), strict=True
    ):
        table = side.weights.new_zeros(len(side.dense) * num_pieces)
        # A piece that occurs twice in a text has the larger of its weights.
        table = table.scatter_reduce(0, side.texts * num_pieces + columns, side.weights, "amax")
        sides.append(table.unflatten(0, (-1, num_pieces)))
    return sides[0] @ sides[1].T


def self_distil(
    scores: Float[Tensor, "N M"], teacher: Float[Tensor, "N M"], *, temperature: float = 0.05
) -> Scalar:
    """Cross-entropy of each query's scores from the teacher's scores (L' in BGE-M3).

    Both are softmaxes over the documents. The teacher's scores receive no gradient.
    """
    wanted = F.softmax(teacher.detach() / temperature, dim=-1)
    return F.cross_entropy(scores / temperature, wanted)


def self_distillation(
    network: Network,
    queries: TokenIds,
    documents: TokenIds,
    groups: Int[np.ndarray, " N"],
    plan: Plan,
    *,
    ignored: Collection[int],
    adapter_ids: tuple[int, int] = (NO_ADAPTER, NO_ADAPTER),
    num_prompts: tuple[int, int] = (1, 1),
    negatives: Sequence[TokenIds] | None = None,
    temperature: float = 0.05,
    teacher_weights: Mapping[str, float] = TEACHER_WEIGHTS,
) -> StepFn:
    """Train the heads to find document i for query i, taught by the sum of all scores.

    Queries, documents, groups, adapters and negatives are as in `contrast`. `num_prompts` are the
    numbers of tokens before the texts' own tokens, for queries and documents; without an
    instruction, this is 1. Pieces in `ignored` have no sparse weight (`Tokenizer.special_ids`).
    The caller freezes what must not learn: with a frozen backbone the dense scores only teach;
    otherwise they are trained too, as in BGE-M3. Raises ValueError if the network has no head.
    """
    if network.sparse is None and network.multi_vector is None:
        raise ValueError("the network has no head to train: set sparse_head or multi_vector_dim")
    answers = find_answers(queries, documents, groups)

    def step_fn(step: int) -> tuple[Tensor, int]:
        rows = plan[step]
        rng = np.random.default_rng(step)
        left, right = [queries[i] for i in rows], [documents[i] for i in rows]
        owners = list(groups[rows])
        for hard in [] if negatives is None else [negatives[i] for i in rows]:
            if len(hard):
                right.append(hard[rng.integers(len(hard))])
                owners.append(-1)
        marks = torch.from_numpy(mark_answers(groups[rows], right, answers))
        query_outputs, document_outputs = (
            run_heads(network, texts, adapter_id, num_prompt=num_prompt, ignored=ignored)
            for texts, adapter_id, num_prompt in zip(
                (left, right), adapter_ids, num_prompts, strict=True
            )
        )
        scores = score_outputs(network, query_outputs, document_outputs)
        teacher = torch.stack([teacher_weights[kind] * s for kind, s in scores.items()]).sum(0)
        total = teacher.new_zeros(())
        # `info_nce` multiplies its inputs; with unit vectors as documents, the product is `own`.
        axes = torch.eye(len(right), device=teacher.device)
        for own in scores.values():
            if own.requires_grad:
                total = total + self_distil(own, teacher, temperature=temperature)
                total = total + info_nce(
                    own,
                    axes,
                    groups=torch.from_numpy(groups[rows]).to(axes.device),
                    document_groups=torch.tensor(owners, device=axes.device),
                    answers=marks.to(axes.device),
                    temperature=temperature,
                )
        total.backward()
        return total.detach(), sum(len(text) for text in left + right)

    return step_fn
