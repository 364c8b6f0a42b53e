"""The Markdown page marks leads, cites the paper, and names the command behind its scores."""

import re
import shlex
from dataclasses import replace

import pytest

from polyvec.cli import app
from polyvec.eval.markdown_report import (
    END,
    START,
    column_table,
    fill_summary,
    lead_table,
    paper_table,
    render_report,
    task_table,
)
from polyvec.eval.results import Score, Summary, TaskScore


def task(kind: str, value: float, draws: tuple[int, ...] = ()) -> TaskScore:
    one = Score(value, value - 0.01, value + 0.01)
    return TaskScore(kind, "m", "r", 1.0, one, {"de": one, "en": one, "sw": one}, draws)


def summary(model: str, value: float, variant: str = "") -> Summary:
    tasks = {
        "stsb-dev": task("STS", value),
        "passkey-256": task("Retrieval", value),
        "passkey-512": task("Retrieval", value / 2),
    }
    return Summary(model, variant, "w", "2.26", "2 CPU cores", "2026-01-01", tasks)


def test_a_lead_is_marked_only_where_its_interval_leaves_out_zero() -> None:
    a, b = summary("a", 0.5), summary("b", 0.5)
    a.tasks = {
        "ahead": task("STS", 0.60, (6000, 6010, 5990)),
        "behind": task("STS", 0.40, (4000, 4010, 3990)),
        "even": task("STS", 0.51, (5100, 6000, 4000)),
        "no-draws": task("STS", 0.6),
        "other-data": task("STS", 0.6, (6000, 6010, 5990)),
    }
    b.tasks = {name: task("STS", 0.5, (5000, 5001, 4999)) for name in a.tasks}
    b.tasks["other-data"] = replace(b.tasks["other-data"], revision="s")
    rows = dict(re.findall(r"^\| ([a-z-]+) \|.*\| (\w*) \|$", lead_table(a, b), re.MULTILINE))
    assert (
        rows.items()
        >= {"ahead": "better", "behind": "worse", "even": "same", "no-draws": ""}.items()
    )
    assert "other-data" not in rows


def test_the_papers_figures_stand_beside_their_tasks() -> None:
    one = summary("a", 0.5)
    one.tasks["SciFact"] = task("Retrieval", 0.6)
    one.tasks["unknown"] = task("Retrieval", 0.6)
    text = paper_table(one)
    assert "| SciFact | 60.0 [59.0, 61.0] | SciFact | 72.3 | the same task |" in text
    assert "| STSBenchmark | 89.4 |" in text
    assert "unknown" not in text


def test_comparisons_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="polyvec eval run"):
        render_report([summary("a", 0.5, "dim 32")])


def test_the_commands_of_the_page_run() -> None:
    """They give each model by the name with which it was loaded, and not by its heading."""
    models = [
        replace(summary("a", 0.5), argument="runs/my model/a"),
        replace(summary("b-served", 0.4), argument="http://localhost:8000/v1"),
        replace(summary("a", 0.5, "chunks by retrieval late-64"), argument="runs/my model/a"),
        summary("lost", 0.4),
    ]
    page = render_report(models)
    run, chunks = re.findall("^    (polyvec .*)$", page, re.MULTILINE)
    assert run == "polyvec eval run 'runs/my model/a' http://localhost:8000/v1 --data DATA"
    assert chunks == (
        "polyvec eval late-chunking 'runs/my model/a' --adapter retrieval --data DATA"
    )
    assert "not public: lost" in page.replace("\n", " ")
    for command in (run, chunks):
        words = shlex.split(command)[1:]
        app.parse_args(words, print_error=False, exit_on_error=False)


def test_the_readme_has_models_that_a_reader_can_choose_and_says_what_they_stand_on() -> None:
    known = replace(summary("a", 0.5), argument="a")
    known.tasks["stsb-dev"] = replace(known.tasks["stsb-dev"], left_out="pairs cut to 9 rows")
    page = fill_summary(f"{START}\n{END}\n", [known, summary("lost", 0.4)])
    assert "| a |" in page
    assert "lost" not in page
    assert "STS: stsb-dev, pairs cut to 9 rows. long context: passkey-256/512." in page


def test_scores_of_other_data_share_no_row_and_no_mean() -> None:
    one, two = summary("a", 0.5), summary("b", 0.4)
    two.tasks["stsb-dev"] = replace(two.tasks["stsb-dev"], revision="other")
    rows = [line.split(" | ") for line in task_table([one, two]).splitlines()]
    sts = [row for row in rows if "stsb-dev" in row[0]]
    assert len(sts) == 2
    assert sts[0][3].startswith("-")
    assert sts[1][2] == "-"
    assert "| b | - | 30.0 |" in column_table([one, two], "model")


def test_a_page_without_markers_stays_as_it_is() -> None:
    assert fill_summary("# Title\n", [summary("a", 0.5)]) == "# Title\n"
