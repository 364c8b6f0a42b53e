"""A text that answers a query is never its negative, whichever row has it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyvec.config import ModelConfig
from polyvec.network import Network
from polyvec.train.data.answers import find_answers, mark_answers
from polyvec.train.head_objectives import self_distillation
from polyvec.train.objectives import contrast


def tokens(*numbers: int) -> np.ndarray:
    return np.array([0, *numbers, 2], np.int32)


QUERIES = [tokens(5), tokens(6), tokens(7), tokens(5)]
POSITIVES = [tokens(15), tokens(16), tokens(17), tokens(18)]
GROUPS = np.array([0, 0, 1, 2])


def test_answers_are_the_positives_of_the_group_and_of_equal_queries() -> None:
    answers = find_answers(QUERIES, POSITIVES, GROUPS)
    marks = mark_answers(GROUPS, [*POSITIVES, tokens(99)], answers)
    assert marks.astype(int).tolist() == [
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0],
    ]


def test_the_answer_within_a_document_is_its_span() -> None:
    documents = [np.concatenate([tokens(1), text]) for text in POSITIVES]
    spans = [(3, 6)] * 4
    answers = find_answers(QUERIES, documents, GROUPS, spans)
    assert mark_answers(GROUPS, POSITIVES, answers).any(1).all()
    assert not mark_answers(GROUPS, documents, answers).any()


@pytest.fixture
def network(headed_config: ModelConfig) -> Network:
    torch.manual_seed(0)
    return Network(headed_config)


@pytest.mark.parametrize("objective", ["contrast", "heads"])
def test_hard_negatives_that_are_answers_change_no_loss(objective: str, network: Network) -> None:
    """Each row brings the positive of the next row and its own: none is a negative of its owner."""
    queries, positives = QUERIES[:3], POSITIVES[:3]
    groups = np.arange(3)

    def loss(negatives: list[list[np.ndarray]]) -> float:
        plan = [np.arange(3)]
        if objective == "contrast":
            step_fn = contrast(
                network, queries, positives, groups, plan, negatives=negatives, num_negatives=2
            )
        else:
            step_fn = self_distillation(
                network, queries, positives, groups, plan, ignored=set(), negatives=negatives
            )
        network.zero_grad()
        return float(step_fn(0)[0])

    nothing, own = loss([[], [], []]), loss([[text] for text in positives])
    if objective == "contrast":
        # A copy of another row's positive counts twice for the rows that it does not answer.
        vectors = F.normalize(
            torch.stack([_mean(network, text) for text in [*queries, *positives]]), dim=-1
        )
        assert own == pytest.approx(_expected(network, vectors), rel=1e-4)
    assert own != pytest.approx(loss([[tokens(50)], [tokens(51)], [tokens(52)]]), rel=1e-3)
    assert nothing < own


def _mean(network: Network, text: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(text).long()
    with torch.no_grad():
        return network(ids, torch.tensor([len(ids)]), torch.tensor([-1])).mean(0)


def _expected(network: Network, vectors: torch.Tensor) -> float:
    """InfoNCE in loops: each row's own positive counts once, and the other positives twice."""
    total = 0.0
    for dim in network.config.dims:
        cut = F.normalize(vectors[:, :dim], dim=-1)
        scores = (cut[:3] @ cut[3:].T / 0.05).exp()
        for i in range(3):
            ahead = scores[i, i] + 2 * sum(scores[i, j] for j in range(3) if j != i)
            back = scores[:, i].sum()
            total -= float(torch.log(scores[i, i] / ahead) + torch.log(scores[i, i] / back))
    return total / 6 / len(network.config.dims)
