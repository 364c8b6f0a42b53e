"""The verbs of `polyvec eval` score, compare and report."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from polyvec import Encoder
from polyvec.cli import eval as verbs
from polyvec.cli.eval import BUNDLED, EvalOptions
from polyvec.eval import Score, models, read_summaries, render_report
from polyvec.eval.baselines import BASELINES
from polyvec.eval.results import write_summary
from polyvec.terminal import ExitStatus
from tests.eval.synthetic import retrieval_folder, sts_folder, summary, tiny_mteb_encoder


def test_a_polyvec_model_scores_as_its_encoder_encodes(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sts_folder(tmp_path)
    results = tmp_path / "results"
    options = EvalOptions(tasks=("sts",), data=tmp_path, results=results, device="cpu")
    verbs.run((str(tiny_model),), options=options)
    assert "| sts | Spearman | **" in capsys.readouterr().out
    verbs.dims(str(tiny_model), options=options)
    verbs.adapters(str(tiny_model), options=options)
    values = {s.variant: s.tasks["sts"].subsets["en"].value for s in read_summaries(results)}

    rows = pq.read_table(tmp_path / "eval/sts/pairs.parquet").to_pylist()[:20]
    encoder = Encoder.load(tiny_model, device="cpu")
    by_hand = {
        "": {"task": "text-matching"},
        "dim 8": {"task": "text-matching", "dim": 8},
        "dim 32": {"task": "text-matching"},
        "adapter none": {"task": None},
        "adapter retrieval": {"task": "retrieval.passage"},
    }
    for variant, choice in by_hand.items():
        a, b = (
            encoder.encode([row[side] for row in rows], **choice) for side in ("text1", "text2")
        )
        expected = spearmanr((a * b).sum(1), [row["score"] for row in rows]).statistic
        # The last bits of a cosine depend on the batch, and may swap two pairs' ranks.
        assert values[variant] == pytest.approx(expected, abs=0.02), variant
    assert len(values) == 1 + 3 + 6
    with pytest.raises(ValueError, match="no folder"):
        verbs.run((str(tmp_path / "nothing"),), options=options)


def test_comparisons_change_one_thing_and_keep_each_result(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieval_folder(tmp_path)
    results = tmp_path / "results"
    options = EvalOptions(tasks=("retrieval",), data=tmp_path, results=results, device="cpu")
    for verb in ("prompts", "long", "quantised"):
        getattr(verbs, verb)(str(tiny_model), options=options)
    assert "| bits rescored | " in capsys.readouterr().out
    values = {s.variant: s.tasks["retrieval"].score.value for s in read_summaries(results)}
    assert values.keys() == {
        "instruction with",
        "instruction without",
        "base 10000",
        "base 20000",
        *(f"vectors {name}" for name in ("float32", "int8", "bits", "bits rescored")),
    }
    assert values["instruction with"] != values["instruction without"]
    encoder = Encoder.load(tiny_model, device="cpu")
    assert values["vectors float32"] == values["instruction with"]
    assert encoder.config.rope_base in (10_000, 20_000)
    assert values[f"base {encoder.config.rope_base:.0f}"] == values["vectors float32"]


def test_a_regression_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASELINES, "tiny", tiny_mteb_encoder)
    options = EvalOptions(data=sts_folder(tmp_path), results=tmp_path / "results")
    verbs.run(("tiny",), options=options)
    path = tmp_path / "results/tiny.json"
    verbs.run(("tiny",), against=path, options=options)
    assert "no score fell" in capsys.readouterr().out
    before = read_summaries(tmp_path / "results")[0]
    task = before.tasks["sts"]
    low = Score(task.score.value + 0.02, task.score.value + 0.01, task.score.value + 0.03)
    before.tasks["sts"] = replace(task, score=low)
    write_summary(tmp_path / "before.json", before)
    status = verbs.run(("tiny",), against=tmp_path / "before.json", options=options)
    assert status == ExitStatus.INCOMPLETE
    assert "tiny sts:" in capsys.readouterr().out
    before.tasks["sts"] = replace(task, revision="other")
    write_summary(tmp_path / "before.json", before)
    with pytest.raises(ValueError, match="the data of sts changed"):
        verbs.run(("tiny",), against=tmp_path / "before.json", options=options)


def test_the_report_is_written_from_the_files_alone(tmp_path: Path) -> None:
    results, page = tmp_path / "results", tmp_path / "results.md"
    rows = [("polyvec-mini", 0.5, ""), ("other", 0.61, ""), ("polyvec-mini", 0.4, "dim 32")]
    for i, row in enumerate(rows):
        write_summary(results / f"{i}.json", summary(*row))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: start -->\nold\n<!-- results: end -->\nafter\n")
    verbs.report(results=results, out=page, page=tmp_path / "results.html", readme=readme)
    text = page.read_text()
    assert readme.read_text().splitlines()[-4:] == [
        "| other | 61.0 | 61.0 | 61.0 |",
        "",
        "<!-- results: end -->",
        "after",
    ]
    assert text == render_report(read_summaries(results))
    assert "| stsb-dev | Spearman | 50.0 [49.0, 51.0] | **61.0** [60.0, 62.0] |" in text
    assert "| model | STS | classification | long context |" in text
    assert "| 32 | 40.0 | 40.0 | 40.0 |" in text
    assert "| sw | 50.0 [49.0, 51.0] |" in text
    assert "polyvec eval run polyvec-mini other" in text


def test_the_bundled_model_has_one_name() -> None:
    assert BUNDLED == models.BUNDLED


def test_without_a_data_folder_the_error_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("POLYVEC_DATA", raising=False)
    with pytest.raises(ValueError, match="--data FOLDER or set POLYVEC_DATA"):
        EvalOptions().select_tasks()


def test_the_environment_names_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POLYVEC_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"{tmp_path} contains no task folder"):
        EvalOptions().select_tasks()
