"""The HTML page contains the numbers of the Markdown page, and loads nothing."""

import re
from xml.etree import ElementTree

from polyvec.eval.html_report import figures, render_page
from polyvec.eval.markdown_report import render_report
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


def test_the_page_contains_every_number_and_loads_nothing() -> None:
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
