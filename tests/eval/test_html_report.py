"""The HTML page holds the same numbers as the Markdown page, and needs nothing else."""

import re
from dataclasses import replace
from xml.etree import ElementTree

from polyvec.eval.html_report import figures, render_page
from polyvec.eval.report import difference_table, paper_table, render_report
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


RESULTS = [
    summary("polyvec-mini", 0.5),
    summary("other", 0.6),
    summary("polyvec-mini", 0.4, "dim 32"),
    summary("polyvec-mini", 0.45, "dim 64"),
    summary("polyvec-mini", 0.4, "adapter none"),
    summary("polyvec-mini", 0.3, "adapter separation"),
    summary("polyvec-mini", 0.3, "base 10000"),
]


def test_the_page_holds_every_number_and_fetches_nothing() -> None:
    page = render_page(RESULTS)
    for cell in re.findall(r"\d+\.\d \[[^]]+\]", render_report(RESULTS)):
        assert cell in page
    assert not re.search(r"<(script|link|img)|url\(http|@import|href=\"http", page)
    assert page == render_page(RESULTS)


def test_each_question_that_has_results_has_a_plot() -> None:
    page = render_page(RESULTS)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    titles = [figure.axes[0].get_title() for figure in figures(RESULTS)]
    assert titles == [
        "Score by dim: polyvec-mini",
        "Adapters by kind of task: polyvec-mini",
        "Length: passkey",
        "stsb-dev by language: polyvec-mini",
        "passkey-256 by language: polyvec-mini",
        "passkey-512 by language: polyvec-mini",
    ]
    assert len(drawings) == len(titles)
    assert len(figures(RESULTS[:1])) == 4


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
    rows = dict(re.findall(r"^\| ([a-z-]+) \|.*\| (\w*) \|$", difference_table(a, b), re.MULTILINE))
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
