"""The released jina-embeddings-v3 gives its published embeddings and scores. Needs the weights."""

from pathlib import Path

import pytest
from benchmarks.released_model import (
    GOLDEN,
    GOLDEN_TEXTS,
    GOLDEN_TOLERANCE,
    SCORE_TOLERANCE,
    compare_scores,
    golden_differences,
    paper_tasks,
)

from polyvec.eval.paper_scores import PAPER_SCORES
from polyvec.tasks import TASKS


def test_every_task_has_published_numbers():
    assert GOLDEN.keys() == {task.name for task in TASKS}
    assert all(len(rows) == len(GOLDEN_TEXTS) for rows in GOLDEN.values())


def test_every_score_of_the_paper_is_of_a_task_of_mteb():
    assert paper_tasks().keys() == PAPER_SCORES.keys()


@pytest.mark.network
def test_the_released_weights_give_the_published_embeddings():
    assert max(golden_differences().values()) < GOLDEN_TOLERANCE


@pytest.mark.network
@pytest.mark.parametrize("name", sorted(PAPER_SCORES))
def test_the_released_weights_give_the_scores_of_the_paper(name: str):
    (scores,) = compare_scores([name], results=Path("runs/released")).values()
    assert scores[0] == pytest.approx(scores[1], abs=SCORE_TOLERANCE)
