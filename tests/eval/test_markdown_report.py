"""The Markdown page marks leads, cites the paper, and names the command behind its scores."""

import re
from dataclasses import replace

import pytest

from polyvec.eval.markdown_report import fill_summary, lead_table, paper_table, render_report
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


def test_the_command_of_the_page_quotes_names_with_spaces() -> None:
    page = render_report([summary("a", 0.5), summary("a, second", 0.4)])
    assert "    polyvec eval run a 'a, second'\n" in page


def test_a_page_without_markers_stays_as_it_is() -> None:
    assert fill_summary("# Title\n", [summary("a", 0.5)]) == "# Title\n"
