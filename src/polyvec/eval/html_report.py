"""The report as one HTML file: the Markdown page's tables, and plots drawn as SVG inside it.

Nothing is fetched when it is opened. The same results give the same file, byte for byte.
"""

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from statistics import mean

import matplotlib as mpl
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from polyvec.eval.published import PAPER_DIMS, PAPER_SIZES
from polyvec.eval.report import COLUMNS, comparisons, group, ordered, render_report
from polyvec.eval.results import Summary

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

LENGTHS = ("passkey", "needle")
"""Tasks whose names end in the length of a document, in tokens."""

ADAPTER_ROWS = ("text-matching", "retrieval", "classification", "separation", "none", "paper")
"""In the order of `COLUMNS`: where each adapter wins its own kind, the best cells run downwards."""

MARKERS = {"STS": "x", "retrieval": "+"}
"""Of the paper's lines, which are all grey."""

MOST_LABELS = 40
"""More bars than these need small letters."""


def render_page(summaries: Sequence[Summary]) -> str:
    """The whole page: plots of what there is first, then every table of docs/results.md."""
    title, _, rest = render_report(summaries).partition("\n")
    tables = MarkdownIt("commonmark").enable("table").render(rest)
    tables = tables.replace("<table>", '<div class="table"><table>')
    tables = tables.replace("</table>", "</table></div>")
    plots = [f"<figure>{as_svg(figure)}</figure>" for figure in figures(summaries)]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>polyvec: results</title>\n'
        f"<style>{STYLE}</style>\n<h1>{title.removeprefix('# ')}</h1>\n"
        + "\n".join(plots)
        + f"\n{tables}</html>\n"
    )


def figures(summaries: Sequence[Summary]) -> list[Figure]:
    """A plot for each question that the results can answer."""
    whole = ordered([summary for summary in summaries if not summary.variant])
    based = [summary for summary in summaries if summary.variant.startswith("base ")]
    drawn = [PLOTS[word](variants) for word, variants in comparisons(summaries) if word in PLOTS]
    if curves := length_curves([*whole, *based]):
        drawn.append(plot_lengths(curves))
    return drawn + plot_languages(whole[0])


def as_svg(figure: Figure) -> str:
    """The `<svg>` element alone, without a date or random names in it."""
    text = StringIO()
    with mpl.rc_context({"svg.hashsalt": "polyvec", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def plot_dims(variants: Sequence[Summary]) -> Figure:
    """Each kind's mean score against the Matryoshka dim."""
    figure = Figure((8, 4), layout="constrained")
    axes = figure.subplots()
    dims = {int(s.variant.removeprefix("dim ")): kind_means(s) for s in variants}
    for kind in COLUMNS:
        points = [(dim, means[kind]) for dim, means in sorted(dims.items()) if kind in means]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=kind)
    for kind, values in PAPER_DIMS.items():
        label = f"{kind}: jina-embeddings-v3, other tasks"
        axes.plot(
            PAPER_SIZES, values, linestyle=":", color="grey", marker=MARKERS[kind], label=label
        )
    axes.set_xscale("log", base=2)
    ticks = sorted({*dims, *PAPER_SIZES})
    axes.set_xticks(ticks, [str(dim) for dim in ticks])
    axes.minorticks_off()
    axes.set(title=f"Score by dim: {variants[0].model}", xlabel="dim", ylabel="score")
    _finish(figure)
    return figure


def length_curves(summaries: Sequence[Summary]) -> dict[str, dict[str, dict[int, float]]]:
    """Scores by kind of task, model and length; a model needs two lengths to make a curve."""
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for kind in LENGTHS:
        for summary in summaries:
            points = {
                int(name.removeprefix(f"{kind}-")): 100 * task.score.value
                for name, task in summary.tasks.items()
                if name.startswith(f"{kind}-")
            }
            if len(points) > 1:
                label = f"{summary.model} {summary.variant}".strip()
                curves.setdefault(kind, {})[label] = dict(sorted(points.items()))
    return curves


def plot_lengths(curves: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """Score against the length of the documents, a panel for passkeys and one for needles."""
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
            title=f"Length: {kind}", xlabel="tokens a document", ylabel="nDCG@1", ylim=(0, 103)
        )
    _finish(figure)
    return figure


def plot_adapters(variants: Sequence[Summary]) -> Figure:
    """A heat map: rows are adapters, columns kinds of task, colours relative to the column."""
    found = {s.variant.removeprefix("adapter "): kind_means(s) for s in variants}
    means = {name: found[name] for name in sorted(found, key=_adapter_order)}
    kinds = [kind for kind in COLUMNS if all(kind in row for row in means.values())]
    figure = Figure((1.2 * len(kinds) + 3, 0.5 * len(means) + 1.5), layout="constrained")
    axes = figure.subplots()
    best = {kind: max(row[kind] for row in means.values()) for kind in kinds}
    # Kinds differ more from one another than adapters do: what counts is the loss to the best.
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
"""By the word that names a comparison."""


def plot_languages(summary: Summary) -> list[Figure]:
    """Bars by language, the best first, for each task of several languages."""
    drawn = []
    for name, task in summary.tasks.items():
        if len(task.subsets) < 3:
            continue
        scores = sorted(task.subsets.items(), key=lambda item: -item[1].value)
        figure = Figure((max(6, 0.11 * len(scores)), 3), layout="constrained")
        axes = figure.subplots()
        values = [100 * score.value for _, score in scores]
        axes.bar(range(len(scores)), values, color="#4878a8")
        letters = 9 if len(scores) <= MOST_LABELS else 6
        labels = [language.removesuffix("-en") for language, _ in scores]
        axes.set_xticks(range(len(scores)), labels, rotation=90, fontsize=letters)
        axes.margins(x=0.005)
        axes.set(title=f"{name} by language: {summary.model}", ylabel="score")
        drawn.append(figure)
    return drawn


def kind_means(summary: Summary) -> dict[str, float]:
    """The mean score of each kind of task, times 100."""
    scores: dict[str, list[float]] = {}
    for name, task in summary.tasks.items():
        scores.setdefault(group(name, task), []).append(100 * task.score.value)
    return {kind: mean(values) for kind, values in scores.items()}


def _adapter_order(name: str) -> tuple[bool, int, str]:
    known = name in ADAPTER_ROWS
    return (not known, ADAPTER_ROWS.index(name) if known else 0, name)


def _finish(figure: Figure) -> None:
    """A grid, and one legend under all panels, where it hides no line."""
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
