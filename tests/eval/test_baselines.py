"""The lexical baselines find shared words."""

from pathlib import Path

import pytest

from polyvec.eval import evaluate, local_tasks
from polyvec.eval.baselines import BASELINES
from tests.eval.synthetic import retrieval_folder, score_task, sts_folder, task_folder


def test_bm25_finds_words_and_skips_what_is_not_retrieval(tmp_path: Path) -> None:
    sts_folder(tmp_path)
    retrieval_folder(tmp_path)
    model = BASELINES["bm25"]()
    summary = evaluate(model, local_tasks(tmp_path), results=tmp_path / "r", progress=False)
    assert summary.tasks.keys() == {"retrieval"}
    assert 0 < summary.tasks["retrieval"].score.value < 1


def test_a_bag_of_words_ranks_by_shared_words(tmp_path: Path) -> None:
    others = ["ant bee", "ant cat", "ant dog elk fox", "owl"]
    rows = [
        {"text1": "ant bee", "text2": text, "score": 5.0 - i, "lang": "en"}
        for i, text in enumerate(others)
    ]
    task = score_task(task_folder(tmp_path, "sts", pairs=rows), BASELINES["tf-idf"]())
    assert task.score.value == pytest.approx(1)
