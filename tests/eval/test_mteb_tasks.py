"""mteb's own tasks run with our encoder, and unreachable data is a clear error."""

from pathlib import Path

import mteb
import pytest

from polyvec.cli.eval import EvalOptions
from polyvec.eval import MtebEncoder, evaluate
from polyvec.eval.markdown_report import render_report
from polyvec.eval.models import BUNDLED, encoder_embed, encoder_meta, load_encoder
from polyvec.eval.mteb_tasks import benchmark_tasks, load_task
from polyvec.eval.results import read_summaries

pytestmark = pytest.mark.filterwarnings("ignore")
"""mteb's mock tasks are so small that scikit-learn warns about them."""


def tiny_encoder(folder: Path) -> MtebEncoder:
    return MtebEncoder(encoder_embed(load_encoder(str(folder), "cpu")), encoder_meta(str(folder)))


def test_mtebs_own_mock_tasks_pass(tiny_model: Path) -> None:
    statuses = dict(mteb.mock_run(tiny_encoder(tiny_model)).items())
    ran = {name: status for name, status in statuses.items() if status is not None}
    failed = {name: status for name, status in ran.items() if not hasattr(status, "scores")}
    assert not failed
    assert len(ran) > 20


def test_tasks_of_mteb_are_stored_and_reported(tmp_path: Path, tiny_model: Path) -> None:
    names = ("MockSTSTask", "MockMultilingualRerankingTask", "MockRetrievalTask")
    tasks = [t for t in mteb.mocks.ALL_MOCK_TASK_TEST_GRID if type(t).__name__ in names]
    assert len(tasks) == len(names)
    summary = evaluate(tiny_encoder(tiny_model), tasks, results=tmp_path, progress=False)
    for task in tasks:
        (path,) = (tmp_path / "mteb").rglob(f"{task.metadata.name}.json")
        expected = mteb.TaskResult.from_disk(path).get_score()
        assert summary.tasks[task.metadata.name].score.value == pytest.approx(expected)
    page = render_report(read_summaries(tmp_path))
    assert "reranking" in page


def test_benchmarks_and_task_names_are_mtebs(tmp_path: Path) -> None:
    for name in ("MTEB(eng, v2)", "MTEB(Multilingual, v2)", "LongEmbed"):
        chosen = EvalOptions(benchmark=name).select_tasks()
        assert {t.metadata.name for t in chosen} == {
            t.metadata.name for t in mteb.get_benchmark(name).tasks
        }
    (task,) = EvalOptions(tasks=("SciFact",), data=tmp_path).select_tasks()
    assert task.metadata.name == "SciFact"
    with pytest.raises(ValueError, match=r"no benchmark 'nothing'.*LongEmbed"):
        benchmark_tasks("nothing")


def test_data_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = EvalOptions(tasks=("SciFact",)).select_tasks()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"the data of SciFact \(mteb/scifact\)"):
        load_task(task)


def test_the_bundled_model_is_open_in_all_but_a_paper_of_its_own() -> None:
    meta = encoder_meta(BUNDLED)
    assert [point for point, given in meta.openness.items() if not given] == ["paper"]
    assert meta.n_parameters > 30_000_000
