"""Losses: pure functions of embeddings, which know nothing of the model.

Axes in this file: N pairs or texts, M candidates, D width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Scalar = Float[Tensor, ""]
Loss = Callable[..., Tensor]


def info_nce(
    queries: Float[Tensor, "N D"],
    documents: Float[Tensor, "M D"],
    *,
    groups: Int[Tensor, " N"],
    document_groups: Int[Tensor, " M"] | None = None,
    answers: Bool[Tensor, "N M"] | None = None,
    temperature: float = 0.05,
) -> Scalar:
    """Contrast each query with all documents, and each of the first N documents with all queries.

    Inputs are unit vectors. Document i answers query i; documents after the N-th are hard
    negatives, which only the forward direction uses (arXiv:2409.10173, equations 2 and 3, with
    means in place of the paper's sums). A document of the query's own group is never a negative,
    and neither is one that `answers` marks as an answer to the query. `document_groups` defaults to
    `groups` and is required if M > N.
    """
    num_pairs = len(queries)
    others = groups if document_groups is None else document_groups
    target = torch.arange(num_pairs, device=queries.device)
    scores = queries @ documents.T / temperature
    ignored = groups[:, None] == others
    if answers is not None:
        ignored |= answers
    ignored[target, target] = False
    forward = F.cross_entropy(scores.masked_fill(ignored, -torch.inf), target)
    back = scores[:, :num_pairs].T.masked_fill(ignored[:, :num_pairs].T, -torch.inf)
    return (forward + F.cross_entropy(back, target)) / 2


def cosent(
    left: Float[Tensor, "N D"],
    right: Float[Tensor, "N D"],
    *,
    scores: Float[Tensor, " N"],
    temperature: float = 0.05,
) -> Scalar:
    """Penalise pairs whose cosines contradict the order of `scores` (arXiv:2409.10173, 4.3.3).

    The loss is ln(1 + sum of exp((cos_j - cos_i) / t)), over all i, j with score i > score j.
    """
    cosines = (left * right).sum(-1) / temperature
    wrong = (cosines[None, :] - cosines[:, None])[scores[:, None] > scores[None, :]]
    return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(0)


def separate(
    vectors: Float[Tensor, "N D"], *, labels: Int[Tensor, " N"], temperature: float = 0.02
) -> Scalar:
    """Penalise texts of one label that are less similar than texts of two labels.

    The loss is `cosent` over all pairs of texts, with score 1 for one label and 0 for two. The
    paper's formula (arXiv:2409.10173, equation 5) contains only pairs of one label, which leaves
    nothing to order. With two scores the double sum is a product, so memory is in proportion to
    the number of pairs and not to its square. The loss is 0 if all pairs have the same score.
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
    """Kullback-Leibler divergence of the students' similarities to `bank` from the teacher's.

    `wanted` is the softmax of the teacher's similarities to the bank, at the same temperature.
    The loss is 0 if the student's softmax is equal.
    """
    student_odds = F.log_softmax(students @ bank.T / temperature, dim=-1)
    return F.kl_div(student_odds, wanted, reduction="batchmean")


def margin_mse(
    queries: Float[Tensor, "N D"],
    documents: Float[Tensor, "M D"],
    *,
    owners: Int[Tensor, " M"],
    scores: Float[Tensor, " M"],
    temperature: float = 0.05,
) -> Scalar:
    """Mean squared error of the margins between a query's first document and each of its others.

    The margins of cosines divided by `temperature` should equal those of a teacher's `scores`
    (MarginMSE, Hofstätter et al. 2020, arXiv:2010.02666). `owners` is the query of each document,
    ascending; a query with n documents has n - 1 margins.
    """
    cosines = (queries[owners] * documents).sum(-1) / temperature
    first = torch.searchsorted(owners, torch.arange(len(queries), device=owners.device))[owners]
    errors = (cosines[first] - cosines) - (scores[first] - scores)
    # The error of a first document is 0, and is not a margin.
    return errors.square().sum() / max(1, len(documents) - len(queries))


def score_divergence(
    queries: Float[Tensor, "N D"],
    documents: Float[Tensor, "M D"],
    *,
    owners: Int[Tensor, " M"],
    scores: Float[Tensor, " M"],
    temperature: float = 0.05,
) -> Scalar:
    """Kullback-Leibler divergence of each query's cosines from a teacher's `scores`.

    Both are softmaxes over the query's own documents, of cosines divided by `temperature` and of
    scores as they are. `owners` is the query of each document, ascending.
    """
    cosines = (queries[owners] * documents).sum(-1) / temperature
    place = torch.arange(len(owners), device=owners.device)
    place = place - torch.searchsorted(owners, owners)
    shape = (len(queries), int(place.max()) + 1)
    student, teacher = (
        values.new_full(shape, -torch.inf).index_put((owners, place), values).log_softmax(-1)
        for values in (cosines, scores)
    )
    there = teacher.isfinite()
    parts = teacher.exp()[there] * (teacher[there] - student[there])
    return parts.sum() / len(queries)


def cosine_distance(students: Float[Tensor, "N D"], teachers: Float[Tensor, "N D"]) -> Scalar:
    """One minus the mean cosine of matching rows. Inputs are unit vectors."""
    return (1 - (students * teachers).sum(-1)).mean()


def matryoshka(loss: Loss, dims: Sequence[int], weights: Sequence[float] | None = None) -> Loss:
    """Weighted mean of `loss` on the first d dimensions, over all d (Kusupati et al. 2022).

    The result is a loss with the same arguments. Every positional argument is a matrix of
    embeddings, which is cut to d columns and normalised; named arguments are passed unchanged.
    """
    parts = torch.tensor(weights or [1.0] * len(dims))

    def total(*embeddings: Tensor, **options: Tensor | float) -> Tensor:
        losses = [
            loss(*(F.normalize(e[:, :dim], dim=-1) for e in embeddings), **options) for dim in dims
        ]
        return (torch.stack(losses) * parts.to(losses[0])).sum() / parts.sum()

    return total
