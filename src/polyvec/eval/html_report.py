"""The report as one HTML file: the tables of the Markdown page, and plots as inline SVG.

The file loads nothing from elsewhere. The same results always give the same file, byte for byte.
"""

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from statistics import mean

import matplotlib as mpl
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from polyvec.eval.markdown_report import comparisons, render_report, unchanged_models
from polyvec.eval.paper_scores import PAPER_DIMS, PAPER_SIZES
from polyvec.eval.results import Summary, model_labels
from polyvec.eval.task_kinds import COLUMNS, report_column

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d8dee4 }
div.table { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
td, th { padding: 2px 10px; border-bottom: 1px solid #e6eaee; white-space: nowrap }
tbody tr:hover { background: #f3f6f9 }
figure { margin: 1.5rem 0; overflow-x: auto }
pre { background: #f3f6f9; padding: .6rem 1rem; overflow-x: auto }
"""

LENGTH_TASKS = ("passkey", "needle")
"""Tasks whose names end in the length of a document, in tokens."""

ADAPTER_ORDER = ("text-matching", "retrieval", "classification", "separation", "none", "paper")
"""Rows of the adapter plot, in the order of `COLUMNS`: if each adapter is the best for its own kind
of task, the best cells form a diagonal."""

PAPER_MARKERS = {"STS": "x", "retrieval": "+"}
"""Point markers of the paper's lines, which are all grey."""

MAX_LARGE_LABELS = 40
"""A plot with more bars has labels in small letters."""


def render_page(summaries: Sequence[Summary]) -> str:
    """Return the whole page: first the plots, then all tables of the Markdown page."""
    title, _, rest = render_report(summaries).partition("\n")
    tables = MarkdownIt("commonmark").enable("table").render(rest)
    tables = tables.replace("<table>", '<div class="table"><table>')
    tables = tables.replace("</table>", "</table></div>")
    # This page needs no link to itself.
    tables = tables.replace('<a href="results.html">results.html</a>', "this page")
    plots = [f"<figure>{as_svg(figure)}</figure>" for figure in figures(summaries)]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>polyvec: results</title>\n'
        f"<style>{STYLE}</style>\n<h1>{title.removeprefix('# ')}</h1>\n"
        + "\n".join(plots)
        + f"\n{tables}</html>\n"
    )


def figures(summaries: Sequence[Summary]) -> list[Figure]:
    """Return all plots for which the results contain scores."""
    models = unchanged_models(summaries)
    rotary_bases = [summary for summary in summaries if summary.variant.startswith("base ")]
    plots = [PLOTS[word](variants) for word, variants in comparisons(summaries) if word in PLOTS]
    if curves := length_curves([*models, *rotary_bases]):
        plots.append(plot_lengths(curves))
    return plots + plot_languages(models[0])


def as_svg(figure: Figure) -> str:
    """Return the `<svg>` element of a figure, without a date and without random names."""
    text = StringIO()
    with mpl.rc_context({"svg.hashsalt": "polyvec", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def plot_dims(variants: Sequence[Summary]) -> Figure:
    """Plot the mean score of each kind of task against the Matryoshka dim."""
    figure = Figure((8, 4), layout="constrained")
    axes = figure.subplots()
    dims = {int(s.variant.removeprefix("dim ")): column_means(s) for s in variants}
    for column in COLUMNS:
        points = [(dim, means[column]) for dim, means in sorted(dims.items()) if column in means]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=column)
    for column, values in PAPER_DIMS.items():
        label = f"{column}: jina-embeddings-v3, other tasks"
        marker = PAPER_MARKERS[column]
        axes.plot(PAPER_SIZES, values, ":", color="grey", marker=marker, label=label)
    axes.set_xscale("log", base=2)
    ticks = sorted({*dims, *PAPER_SIZES})
    axes.set_xticks(ticks, [str(dim) for dim in ticks])
    axes.minorticks_off()
    axes.set(title=f"Score by dim: {variants[0].model}", xlabel="dim", ylabel="score")
    _finish(figure)
    return figure


def length_curves(summaries: Sequence[Summary]) -> dict[str, dict[str, dict[int, float]]]:
    """Return scores by task, model and length, for models with scores at two lengths or more."""
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for kind in LENGTH_TASKS:
        for summary, name_of_model in zip(summaries, model_labels(summaries), strict=True):
            points = {
                int(length): 100 * task.score.value
                for name, task in summary.tasks.items()
                if (length := name.removeprefix(f"{kind}-")).isdecimal()
            }
            if len(points) > 1:
                label = f"{name_of_model} {summary.variant}".strip()
                curves.setdefault(kind, {})[label] = dict(sorted(points.items()))
    return curves


def plot_lengths(curves: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """Plot scores against the length of the documents, with one panel per task."""
    figure = Figure((10, 4), layout="constrained")
    for axes, (kind, lines) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        lengths = sorted({length for points in lines.values() for length in points})
        for label, points in lines.items():
            axes.plot(list(points), list(points.values()), marker="o", label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.set(
            title=f"Length: {kind}", xlabel="tokens per document", ylabel="nDCG@1", ylim=(0, 103)
        )
    _finish(figure)
    return figure


def plot_adapters(variants: Sequence[Summary]) -> Figure:
    """Plot a heat map of adapters by kinds of task, with colours relative to each kind's best."""
    scores = {s.variant.removeprefix("adapter "): column_means(s) for s in variants}
    means = {name: scores[name] for name in sorted(scores, key=_adapter_order)}
    kinds = [kind for kind in COLUMNS if all(kind in row for row in means.values())]
    figure = Figure((1.2 * len(kinds) + 3, 0.5 * len(means) + 1.5), layout="constrained")
    axes = figure.subplots()
    best = {kind: max(row[kind] for row in means.values()) for kind in kinds}
    # Kinds of task differ more than adapters do, so colours show the distance to the best adapter.
    losses = [[row[kind] - best[kind] for kind in kinds] for row in means.values()]
    image = axes.imshow(losses, cmap="viridis", vmin=-10, vmax=0, aspect="auto")
    for y, row in enumerate(means.values()):
        for x, kind in enumerate(kinds):
            colour = "black" if losses[y][x] > -4 else "white"
            weight = "bold" if row[kind] == best[kind] else "normal"
            axes.text(
                x, y, f"{row[kind]:.1f}", ha="center", va="center", color=colour, weight=weight
            )
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(means)), list(means))
    axes.set_title(f"Adapters by kind of task: {variants[0].model}")
    figure.colorbar(image, label="points below the column's best")
    return figure


PLOTS: dict[str, Callable[[Sequence[Summary]], Figure]] = {
    "dim": plot_dims,
    "adapter": plot_adapters,
}
"""Plots of comparisons, by the comparison's name."""


def plot_languages(summary: Summary) -> list[Figure]:
    """Plot bars by language, the best first, for each task with at least three languages."""
    plots = []
    for name, task in summary.tasks.items():
        if len(task.subsets) < 3:
            continue
        scores = sorted(task.subsets.items(), key=lambda item: -item[1].value)
        figure = Figure((max(6, 0.11 * len(scores)), 3), layout="constrained")
        axes = figure.subplots()
        values = [100 * score.value for _, score in scores]
        axes.bar(range(len(scores)), values, color="#4878a8")
        font_size = 9 if len(scores) <= MAX_LARGE_LABELS else 6
        labels = [language.removesuffix("-en") for language, _ in scores]
        axes.set_xticks(range(len(scores)), labels, rotation=90, fontsize=font_size)
        axes.margins(x=0.005)
        axes.set(title=f"{name} by language: {summary.model}", ylabel="score")
        plots.append(figure)
    return plots


def column_means(summary: Summary) -> dict[str, float]:
    """Return the mean score of each column of the report, times 100."""
    scores: dict[str, list[float]] = {}
    for name, task in summary.tasks.items():
        column = report_column(name, task.kind)
        scores.setdefault(column, []).append(100 * task.score.value)
    return {column: mean(values) for column, values in scores.items()}


def _adapter_order(name: str) -> tuple[bool, int, str]:
    known = name in ADAPTER_ORDER
    return (not known, ADAPTER_ORDER.index(name) if known else 0, name)


def _finish(figure: Figure) -> None:
    """Add a grid, and one legend below all panels, so that it hides no line."""
    lines = {}
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        lines |= {
            label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
