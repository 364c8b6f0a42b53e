"""A plot of clusters with one dot per text, as a self-contained HTML page or as PNG.

Axes in this file: N texts.
"""

import colorsys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float

from polyvec.search.clustering import Clusters

SUFFIXES = (".html", ".png")
"""The ends of the names of files that can be written."""

NO_CLUSTER_COLOUR = "#9a9a9a"
"""The colour of texts in no cluster."""

TOOLTIP_CHARACTERS = 160
"""The length of the beginning of a text that an HTML page shows for its dot."""

MAX_LEGEND_CLUSTERS = 30
"""The clusters in the legend of a PNG. The legend of an HTML page has all clusters."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }}
  body {{ display: flex; flex-wrap: wrap; gap: 1.5em; margin: 1.5em; }}
  h1 {{ flex-basis: 100%; margin: 0; font-size: 1.2em; }}
  svg {{ flex: 1 1 30em; max-height: 90vh; border: 1px solid #8884; border-radius: 6px; }}
  circle {{ fill-opacity: .75; }}
  circle:hover {{ fill-opacity: 1; stroke: currentColor; stroke-width: 3; }}
  svg text {{ font-size: 22px; font-weight: 600; fill: currentColor; pointer-events: none; }}
  ol {{ flex: 0 1 20em; margin: 0; padding: 0; list-style: none; }}
  li::before {{ content: "●"; color: var(--dot); padding-right: .4em; }}
</style>
<h1>{title}</h1>
<svg viewBox="-20 -20 1040 1040" role="img">
{dots}
</svg>
<ol>
{legend}
</ol>
</html>
"""


def check_plot_path(path: Path) -> None:
    """Raise ValueError if no plot can be written to `path`; call this before the clustering."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the map {path} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for the map")


def write_plot(
    path: Path,
    clusters: Clusters,
    points: Float[np.ndarray, "N 2"],
    *,
    locations: Sequence[str],
    texts: Sequence[str],
    title: str,
) -> None:
    """Write a plot to a file that ends in .html or .png. Points lie between 0 and 1.

    `locations` name the file and line of each text. An HTML page shows them with the beginnings of
    the texts when the pointer is on a dot; it has no scripts and loads nothing.
    """
    check_plot_path(path)
    if path.suffix.lower() == ".html":
        page = render_page(clusters, points, locations=locations, texts=texts, title=title)
        # A name or a text may hold half of a surrogate pair, which UTF-8 cannot encode.
        path.write_bytes(page.encode("utf-8", "replace"))
    else:
        _write_png(path, clusters, points, title)


def cluster_title(clusters: Clusters, cluster_id: int) -> str:
    """The number of a cluster, counted from 1, and its keywords; "none" for -1."""
    if cluster_id < 0:
        return "none"
    return f"{cluster_id + 1}  {', '.join(clusters.words[cluster_id])}"


def list_cluster_ids(clusters: Clusters) -> list[int]:
    """The ids of all clusters, and -1 at the end if a text is in no cluster."""
    return [*range(len(clusters.words)), *([-1] if (clusters.cluster_ids < 0).any() else [])]


def cluster_colour(cluster_id: int) -> str:
    """The colour of a cluster. The hues of successive clusters are far apart."""
    if cluster_id < 0:
        return NO_CLUSTER_COLOUR
    # Multiples of the golden ratio never repeat a hue.
    hue = cluster_id * 0.618034 % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.38 + 0.16 * (cluster_id % 2), 0.65)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def render_page(
    clusters: Clusters,
    points: Float[np.ndarray, "N 2"],
    *,
    locations: Sequence[str],
    texts: Sequence[str],
    title: str,
) -> str:
    """The HTML page of `write_plot`."""
    dots, legend = [], []
    # Texts in no cluster come first, so that the others are drawn above them.
    for cluster_id in list_cluster_ids(clusters)[::-1]:
        for member in clusters.members(cluster_id):
            x, y = points[member] * 1000
            tooltip = escape(
                f"{locations[member]}\n{first_words(texts[member], TOOLTIP_CHARACTERS)}"
            )
            dots.append(
                f'<circle cx="{x:.1f}" cy="{1000 - y:.1f}" r="9" '
                f'fill="{cluster_colour(cluster_id)}"><title>{tooltip}</title></circle>'
            )
    for cluster_id in list_cluster_ids(clusters):
        members = clusters.members(cluster_id)
        if cluster_id >= 0:
            x, y = np.median(points[members], axis=0) * 1000
            dots.append(f'<text x="{x:.1f}" y="{1000 - y:.1f}">{cluster_id + 1}</text>')
        name = escape(cluster_title(clusters, cluster_id))
        colour = cluster_colour(cluster_id)
        legend.append(f'<li style="--dot:{colour}">{name} ({len(members)})</li>')
    return PAGE.format(title=escape(title), dots="\n".join(dots), legend="\n".join(legend))


def first_words(text: str, size: int) -> str:
    """A text's beginning on one line, cut at a word where it has words.

    >>> first_words("one  two three", 9)
    'one two …'
    """
    line = " ".join(text[: 4 * size].split())
    if len(line) <= size:
        return line
    cut = line[: size - 1]
    head, space, _ = cut.rpartition(" ")
    return (head if space and 2 * len(head) > size else cut) + " …"


def _write_png(
    path: Path, clusters: Clusters, points: Float[np.ndarray, "N 2"], title: str
) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    cluster_ids = list_cluster_ids(clusters)
    names = [
        cluster_title(clusters, cluster_id) for cluster_id in cluster_ids[:MAX_LEGEND_CLUSTERS]
    ]
    families, unknown = find_fonts(title + "".join(names))
    # A dollar sign in a word must not begin a formula.
    with rc_context({"font.family": families, "text.parse_math": False}):
        figure = Figure(figsize=(11, 7), layout="constrained")
        axes = figure.add_subplot()
        for cluster_id in cluster_ids[::-1]:
            inside = points[clusters.cluster_ids == cluster_id]
            colour = cluster_colour(cluster_id)
            axes.scatter(inside[:, 0], inside[:, 1], s=22, color=colour, alpha=0.75)
        for cluster_id in range(len(clusters.words)):
            x, y = np.median(points[clusters.cluster_ids == cluster_id], axis=0)
            axes.annotate(str(cluster_id + 1), (x, y), size="large")
        axes.set(xticks=[], yticks=[], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_title(title.translate(unknown))
        # Empty series, so that the legend has the order of the clusters.
        for cluster_id, name in zip(cluster_ids, names, strict=False):
            label = name.translate(unknown)
            axes.scatter([], [], color=cluster_colour(cluster_id), label=label)
        if names:
            figure.legend(loc="outside right upper", fontsize="small", frameon=False)
        figure.savefig(path, dpi=120, format="png")


def find_fonts(text: str) -> tuple[list[str], dict[int, str]]:
    """Font families that together have the text's characters, and a translation of the others.

    Characters that no installed font has are translated to boxes.
    """
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.ft2font import FT2Font

    families = ["DejaVu Sans"]
    first = findfont(FontProperties(family=families[0]))
    missing = {ord(sign) for sign in text} - FT2Font(first).get_charmap().keys()
    for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        if not missing:
            break
        # Only the variant that is drawn counts: a bold one may have other characters. The font
        # Last Resort has all characters, as boxes of its own.
        plain = font.style == "normal" and str(font.weight) in ("400", "normal")
        if not plain or font.name.startswith("Last Resort"):
            continue
        if new := missing & FT2Font(font.fname).get_charmap().keys():
            families.append(font.name)
            missing -= new
    return families, {sign: "□" for sign in missing}
