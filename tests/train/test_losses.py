"""Every loss compared with its formula, written as loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polyvec.train.losses import (
    cosent,
    cosine_distance,
    distil,
    info_nce,
    margin_mse,
    matryoshka,
    score_divergence,
    separate,
)


def units(rows: int, width: int = 6, *, seed: int = 0) -> Tensor:
    """Random unit vectors."""
    return F.normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def close(found: Tensor, expected: float) -> None:
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_hard", [0, 3])
def test_info_nce_is_its_double_loop(num_hard: int) -> None:
    queries, documents = units(4), units(4 + num_hard, seed=1)
    groups, owners = [0, 1, 0, 2], [0, 1, 0, 2] + [-1] * num_hard
    t, forward, back = 0.1, 0.0, 0.0
    for i in range(4):
        answer = math.exp(queries[i] @ documents[i] / t)
        seen = [j for j in range(len(owners)) if j == i or owners[j] != groups[i]]
        forward -= math.log(answer / sum(math.exp(queries[i] @ documents[j] / t) for j in seen))
        seen = [j for j in range(4) if j == i or groups[j] != groups[i]]
        back -= math.log(answer / sum(math.exp(queries[j] @ documents[i] / t) for j in seen))
    found = info_nce(
        queries,
        documents,
        groups=torch.tensor(groups),
        document_groups=torch.tensor(owners),
        temperature=t,
    )
    close(found, (forward + back) / 8)


def test_texts_of_one_group_are_never_negatives_of_each_other() -> None:
    queries, documents = units(3).requires_grad_(), units(3, seed=1)
    info_nce(queries, documents, groups=torch.tensor([5, 5, 5])).backward()
    assert queries.grad is not None
    assert not queries.grad.any()


def test_cosent_is_its_double_loop() -> None:
    left, right = units(5), units(5, seed=1)
    scores = [0.1, 0.9, 0.5, 0.5, 0.0]
    total = 1.0
    for i in range(5):
        for j in range(5):
            if scores[i] > scores[j]:
                total += math.exp((left[j] @ right[j] - left[i] @ right[i]) / 0.05)
    close(cosent(left, right, scores=torch.tensor(scores)), math.log(total))


def test_cosent_of_equal_scores_is_zero() -> None:
    close(cosent(units(3), units(3, seed=1), scores=torch.ones(3)), 0.0)


def test_separate_is_cosent_over_all_pairs_of_texts() -> None:
    vectors, labels = units(7), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    one, two = torch.triu_indices(7, 7, offset=1)
    scores = (labels[one] == labels[two]).float()
    expected = cosent(vectors[one], vectors[two], scores=scores, temperature=0.1)
    torch.testing.assert_close(separate(vectors, labels=labels, temperature=0.1), expected)


def test_separate_is_zero_for_a_single_label() -> None:
    vectors = units(3).requires_grad_()
    separate(vectors, labels=torch.tensor([4, 4, 4])).backward()
    assert vectors.grad is not None
    assert not vectors.grad.any()


def test_distil_is_its_double_loop_and_zero_for_the_teacher_itself() -> None:
    students, teachers, bank = units(3), units(3, seed=1), units(5, seed=2)
    wanted = F.softmax(teachers @ bank.T / 0.1, dim=-1)
    total = 0.0
    for i in range(3):
        odds = [math.exp(students[i] @ bank[j] / 0.1) for j in range(5)]
        for j in range(5):
            p = wanted[i, j].item()
            total += p * math.log(p / (odds[j] / sum(odds)))
    close(distil(students, bank, wanted=wanted, temperature=0.1), total / 3)
    assert distil(teachers, bank, wanted=wanted, temperature=0.1).abs() < 1e-6


def test_cosine_distance_is_zero_at_the_teacher_and_two_opposite() -> None:
    vectors = units(4)
    assert cosine_distance(vectors, vectors).abs() < 1e-6
    close(cosine_distance(vectors, -vectors), 2.0)


def test_matryoshka_cuts_then_normalises_then_averages() -> None:
    left, right = units(4), units(4, seed=1)
    nested = matryoshka(cosine_distance, (2, 6), weights=(1.0, 3.0))
    cut = [F.normalize(x[:, :2], dim=-1) for x in (left, right)]
    expected = (cosine_distance(*cut) + 3 * cosine_distance(left, right)) / 4
    torch.testing.assert_close(nested(left, right), expected)


OWNERS = [0, 0, 0, 1, 1, 2]
TEACHER = [3.0, 1.0, -2.0, 0.5, 0.0, 7.0]


def by_query(values: list[float]) -> list[list[float]]:
    return [[v for v, owner in zip(values, OWNERS, strict=True) if owner == i] for i in range(3)]


def test_margin_mse_is_its_loop() -> None:
    queries, documents = units(3), units(6, seed=1)
    cosines = [float(queries[o] @ documents[j]) / 0.1 for j, o in enumerate(OWNERS)]
    errors = [
        ((own[0] - own[j]) - (wanted[0] - wanted[j])) ** 2
        for own, wanted in zip(by_query(cosines), by_query(TEACHER), strict=True)
        for j in range(1, len(own))
    ]
    options = {"owners": torch.tensor(OWNERS), "temperature": 0.1}
    found = margin_mse(queries, documents, scores=torch.tensor(TEACHER), **options)
    close(found, sum(errors) / 3)
    assert margin_mse(queries, documents, scores=torch.tensor(cosines), **options) < 1e-6


def test_the_divergence_of_scores_is_its_loop() -> None:
    queries, documents = units(3).requires_grad_(), units(6, seed=1)
    cosines = [float(queries[o].detach() @ documents[j]) / 0.1 for j, o in enumerate(OWNERS)]
    total = 0.0
    for own, wanted in zip(by_query(cosines), by_query(TEACHER), strict=True):
        mine, theirs = ([math.exp(v) for v in values] for values in (own, wanted))
        for j in range(len(own)):
            p = theirs[j] / sum(theirs)
            total += p * math.log(p / (mine[j] / sum(mine)))
    options = {"owners": torch.tensor(OWNERS), "temperature": 0.1}
    found = score_divergence(queries, documents, scores=torch.tensor(TEACHER), **options)
    close(found, total / 3)
    found.backward()
    assert queries.grad is not None
    assert torch.isfinite(queries.grad).all()
    assert score_divergence(queries, documents, scores=torch.tensor(cosines), **options) < 1e-6
