"""Losses: pure functions of embeddings. None of them has seen a model.

Axes in this file: N pairs or texts, M candidates, D width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Scalar = Float[Tensor, ""]
Loss = Callable[..., Tensor]


def info_nce(
    queries: Float[Tensor, "N D"],
    documents: Float[Tensor, "M D"],
    *,
    groups: Int[Tensor, " N"],
    document_groups: Int[Tensor, " M"] | None = None,
    temperature: float = 0.05,
) -> Scalar:
    """Each query against every document, and each of the first N documents against every query.

    Unit vectors in; document i answers query i, and documents after the N-th are hard negatives,
    which the reverse direction does not see (arXiv:2409.10173, equations 2 and 3; means where the
    paper writes sums). A document of the query's own group is never a negative;
    `document_groups` defaults to the queries' groups and is needed where M > N.
    """
    num_pairs = len(queries)
    others = groups if document_groups is None else document_groups
    target = torch.arange(num_pairs, device=queries.device)
    scores = queries @ documents.T / temperature
    friends = groups[:, None] == others
    friends[target, target] = False
    forward = F.cross_entropy(scores.masked_fill(friends, -torch.inf), target)
    back = scores[:, :num_pairs].T.masked_fill(friends[:, :num_pairs].T, -torch.inf)
    return (forward + F.cross_entropy(back, target)) / 2


def cosent(
    left: Float[Tensor, "N D"],
    right: Float[Tensor, "N D"],
    *,
    scores: Float[Tensor, " N"],
    temperature: float = 0.05,
) -> Scalar:
    """How badly cosines order the pairs that `scores` orders (arXiv:2409.10173, section 4.3.3).

    ln(1 + the sum of exp((cos_j - cos_i) / t) over pairs i, j whose gold scores say i > j).
    """
    cosines = (left * right).sum(-1) / temperature
    wrong = (cosines[None, :] - cosines[:, None])[scores[:, None] > scores[None, :]]
    return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(0)


def separate(
    vectors: Float[Tensor, "N D"], *, labels: Int[Tensor, " N"], temperature: float = 0.02
) -> Scalar:
    """How badly cosines tell texts of one label from texts of two (arXiv:2409.10173, equation 5).

    `cosent` over all pairs of texts, with score 1 for one label and 0 for two: the formula as
    printed holds only pairs of one label, which would leave nothing to order. With two scores its
    double sum is a product, so that memory grows with the pairs and not with their square.
    """
    one, two = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    cosines = (vectors @ vectors.T)[one, two] / temperature
    same = labels[one] == labels[two]
    if not same.any() or same.all():
        return vectors.sum() * 0
    return F.softplus(cosines[~same].logsumexp(0) + (-cosines[same]).logsumexp(0))


def distil(
    students: Float[Tensor, "N D"],
    bank: Float[Tensor, "M D"],
    *,
    wanted: Float[Tensor, "N M"],
    temperature: float = 0.05,
) -> Scalar:
    """How far each student is from seeing the texts of `bank` as its teacher sees them.

    `wanted` is the teacher's softmax of similarity to the bank at the same temperature. The
    Kullback-Leibler divergence of the student's softmax from it: 0 where they agree.
    """
    found = F.log_softmax(students @ bank.T / temperature, dim=-1)
    return F.kl_div(found, wanted, reduction="batchmean")


def cosine_distance(students: Float[Tensor, "N D"], teachers: Float[Tensor, "N D"]) -> Scalar:
    """One minus the mean cosine of matching rows, unit vectors in."""
    return (1 - (students * teachers).sum(-1)).mean()


def matryoshka(loss: Loss, dims: Sequence[int], weights: Sequence[float] | None = None) -> Loss:
    """The weighted mean of `loss` over the first d coordinates, for each d (Kusupati et al. 2022).

    Every positional argument is an embedding matrix, cut to d columns and normalised afresh;
    named arguments are passed on as they are.
    """
    parts = torch.tensor(weights or [1.0] * len(dims))

    def total(*embeddings: Tensor, **options: Tensor | float) -> Tensor:
        losses = [
            loss(*(F.normalize(e[:, :dim], dim=-1) for e in embeddings), **options) for dim in dims
        ]
        return (torch.stack(losses) * parts.to(losses[0])).sum() / parts.sum()

    return total
