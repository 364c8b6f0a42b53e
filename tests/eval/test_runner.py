"""Runs resume where they were killed, and score again what changed."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jaxtyping import Float32

from polyvec.eval import MtebEncoder, evaluate, local_tasks, read_summaries
from polyvec.eval.baselines import model_meta
from tests.eval.synthetic import (
    embed,
    retrieval_folder,
    score_task,
    sts_folder,
    tiny_mteb_encoder,
)


def test_a_killed_run_resumes_with_the_interrupted_task(tmp_path: Path) -> None:
    sts_folder(tmp_path)
    retrieval_folder(tmp_path)
    asked: list[str | None] = []

    def dying(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        asked.append(adapter)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return embed(texts)

    tasks, results = local_tasks(tmp_path), tmp_path / "results"
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_mteb_encoder(dying), tasks, results=results, progress=False)
    assert asked[:2] == ["retrieval.query", "retrieval.passage"]
    asked.clear()
    resumed = evaluate(tiny_mteb_encoder(dying), tasks, results=results, progress=False)
    assert asked == ["text-matching"] * 4
    whole = evaluate(tiny_mteb_encoder(), tasks, results=tmp_path / "whole", progress=False)
    for name, task in whole.tasks.items():
        assert resumed.tasks[name].score.value == pytest.approx(task.score.value, abs=1e-5)


def test_a_task_is_scored_again_when_its_data_or_the_model_changed(tmp_path: Path) -> None:
    before = score_task(sts_folder(tmp_path))
    path = tmp_path / "eval/sts/pairs.parquet"
    pq.write_table(pa.Table.from_pylist(pq.read_table(path).to_pylist()[:-5]), path)
    after = score_task(tmp_path)
    assert before.revision != after.revision
    assert before.score != after.score
    changed = MtebEncoder(lambda texts, adapter: embed(texts) ** 3, model_meta("tiny", "2"))
    assert score_task(tmp_path, changed).score != after.score


def test_a_task_is_scored_again_when_the_code_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def spy(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        asked.append(len(texts))
        return embed(texts)

    sts_folder(tmp_path)
    for version in (1, 1, 2):
        monkeypatch.setattr("polyvec.eval.runner.SCORING_VERSION", version)
        score_task(tmp_path, tiny_mteb_encoder(spy))
        if version == 1:
            once = len(asked)
    assert len(asked) == 2 * once


def test_a_task_is_scored_again_when_its_metric_changed(tmp_path: Path) -> None:
    before = score_task(retrieval_folder(tmp_path))
    path = tmp_path / "eval/retrieval/meta.json"
    path.write_text(path.read_text().replace('"metric": ""', '"metric": "accuracy@1"'))
    after = score_task(tmp_path)
    assert (before.metric, after.metric) == ("ndcg_at_10", "ndcg_at_1")
    assert before.score != after.score


def test_models_of_one_name_keep_both_their_scores(tmp_path: Path) -> None:
    tasks, results = local_tasks(sts_folder(tmp_path)), tmp_path / "results"
    models = [
        tiny_mteb_encoder(),
        MtebEncoder(lambda texts, adapter: embed(texts) ** 3, model_meta("tiny", "2")),
    ]
    first = [evaluate(model, tasks, results=results, progress=False) for model in models]
    assert first[0].tasks["sts"].score != first[1].tasks["sts"].score
    again = [evaluate(model, tasks, results=results, progress=False) for model in models]
    for old, new in zip(first, again, strict=True):
        assert new.revision == old.revision
        assert new.tasks["sts"].score.value == pytest.approx(old.tasks["sts"].score.value, abs=1e-5)
    assert len(read_summaries(results)) == 2


def test_mtebs_own_files_are_written_beside_the_summary(tmp_path: Path) -> None:
    task = score_task(sts_folder(tmp_path))
    (path,) = (tmp_path / "results/mteb").glob("**/sts.json")
    scores = json.loads(path.read_text())["scores"]["test"]
    for score in scores:
        assert task.subsets[score["hf_subset"]].value == pytest.approx(
            score["main_score"], abs=1e-5
        )
