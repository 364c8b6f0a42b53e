"""Training the sparse and the multi-vector head, as BGE-M3 does (arXiv:2402.03216, section 3.2).

1. A step's queries and documents are read once.
2. Every query is scored against every document three ways: by the cosine of the means, by the
   products of token weights, and by MaxSim.
3. Each head's scores must find the answer (`info_nce`) and agree with the weighted sum of all
   three (`self_distil`), which knows more than any of them.

Axes in this file: N queries or texts, M documents, P pieces in a batch, T tokens, D width,
V a token vector's numbers.
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
from polyvec.train.loop import Work
from polyvec.train.losses import Scalar, info_nce
from polyvec.train.objectives import Tokens

SHARES = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
"""How much each kind of score counts in the sum that teaches the heads; BGE-M3's."""


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """What N texts say, with its graph. A network without a head leaves its tensors empty."""

    dense: Float[Tensor, "N D"]
    """Unit vectors."""

    weights: Float[Tensor, " T"]
    """Of the texts' own tokens, special ones left out."""

    ids: Int[Tensor, " T"]
    """These tokens' pieces."""

    texts: Int[Tensor, " T"]
    """The text each is in."""

    vectors: Float[Tensor, "_T V"]
    """Of the texts' own tokens and their `</s>`, text after text."""

    lengths: Int[Tensor, " N"]
    """How many of the vectors each text has."""


def read(
    network: Network,
    texts: Tokens,
    row: int,
    *,
    num_prompt: int | Sequence[int],
    ignored: Collection[int],
) -> Signals:
    """All signals of `texts` read by one adapter.

    `num_prompt` tokens come before a text's own, `<s>` and the instruction, as many for all or as
    the list says; `ignored` pieces weigh nothing (`Tokenizer.special_ids`).
    """
    device = network.embeddings.word.weight.device
    batch = make_batch(texts, [row] * len(texts))
    ids, lengths, rows = (
        torch.from_numpy(array).long().to(device)
        for array in (batch.token_ids, batch.lengths, batch.adapter_ids)
    )
    hidden = network(ids, lengths, rows)
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
    return Signals(
        F.normalize(pool(hidden, ends - lengths, ends), dim=-1),
        weights,
        ids[weighed],
        text[weighed],
        vectors,
        torch.bincount(text[own | last], minlength=len(texts)),
    )


def score(
    network: Network, queries: Signals, documents: Signals
) -> dict[str, Float[Tensor, "N M"]]:
    """Every query against every document, by each kind of signal that the network has."""
    scores = {"dense": queries.dense @ documents.dense.T}
    if network.sparse is not None:
        scores["sparse"] = lexical(queries, documents)
    if network.multi_vector is not None:
        scores["multi_vector"] = maxsim(
            queries.vectors, queries.lengths, documents.vectors, documents.lengths
        )
    return scores


def lexical(queries: Signals, documents: Signals) -> Float[Tensor, "N M"]:
    """The products of the texts' weights: `Sparse.dot`, with its gradient."""
    _, pieces = torch.unique(torch.cat([queries.ids, documents.ids]), return_inverse=True)
    num_pieces = int(pieces.max()) + 1 if len(pieces) else 1
    sides = []
    for side, columns in zip(
        (queries, documents), pieces.split([len(queries.ids), len(documents.ids)]), strict=True
    ):
        table = side.weights.new_zeros(len(side.dense) * num_pieces)
        # A piece that comes twice in a text has its largest weight.
        table = table.scatter_reduce(0, side.texts * num_pieces + columns, side.weights, "amax")
        sides.append(table.unflatten(0, (-1, num_pieces)))
    return sides[0] @ sides[1].T


def self_distil(
    scores: Float[Tensor, "N M"], teacher: Float[Tensor, "N M"], *, temperature: float = 0.05
) -> Scalar:
    """How far the documents' order for each query is from the teacher's (BGE-M3's L').

    The cross-entropy of the scores' softmax over documents from the teacher's, whose scores get
    no gradient.
    """
    wanted = F.softmax(teacher.detach() / temperature, dim=-1)
    return F.cross_entropy(scores / temperature, wanted)


def heads(
    network: Network,
    queries: Tokens,
    documents: Tokens,
    groups: Int[np.ndarray, " N"],
    plan: Sequence[Int[np.ndarray, " _rows"]],
    *,
    ignored: Collection[int],
    rows: tuple[int, int] = (-1, -1),
    num_prompts: tuple[int, int] = (1, 1),
    negatives: Sequence[Tokens] | None = None,
    temperature: float = 0.05,
    shares: Mapping[str, float] = SHARES,
) -> Work:
    """Query i belongs with document i, by the tokens they share and by MaxSim too.

    Queries, documents, groups, rows and negatives are as for `contrast`. `num_prompts` are the
    tokens before the texts' own on each side, 1 where there is no instruction; `ignored` are
    pieces without a weight, `Tokenizer.special_ids`. What should not learn, the caller freezes:
    with a frozen backbone the dense scores teach and are not trained, else they are, as in BGE-M3.
    """
    if network.sparse is None and network.multi_vector is None:
        raise ValueError("the network has no head to train: set sparse_head or multi_vector_dim")

    def work(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        rng = np.random.default_rng(step)
        left, right = [queries[i] for i in chosen], [documents[i] for i in chosen]
        owners = list(groups[chosen])
        for hard in [] if negatives is None else [negatives[i] for i in chosen]:
            if len(hard):
                right.append(hard[rng.integers(len(hard))])
                owners.append(-1)
        asked, answers = (
            read(network, texts, row, num_prompt=num_prompt, ignored=ignored)
            for texts, row, num_prompt in zip((left, right), rows, num_prompts, strict=True)
        )
        scores = score(network, asked, answers)
        teacher = torch.stack([shares[kind] * part for kind, part in scores.items()]).sum(0)
        total = teacher.new_zeros(())
        # Scores are to their documents what vectors are to the unit vectors.
        axes = torch.eye(len(right), device=teacher.device)
        for part in scores.values():
            if part.requires_grad:
                total = total + self_distil(part, teacher, temperature=temperature)
                total = total + info_nce(
                    part,
                    axes,
                    groups=torch.from_numpy(groups[chosen]).to(axes.device),
                    document_groups=torch.tensor(owners, device=axes.device),
                    temperature=temperature,
                )
        total.backward()
        return total.detach(), sum(len(text) for text in left + right)

    return work
