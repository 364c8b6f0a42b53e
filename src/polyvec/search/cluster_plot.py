"""A picture of clusters: a dot a text, as HTML that needs nothing else, or as PNG.

Axes in this file: N texts.
"""

import colorsys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float

from polyvec.search.clustering import Clusters
from polyvec.terminal import first_words

SUFFIXES = (".html", ".png")

GREY = "#9a9a9a"
"""Of texts in no cluster."""

SHOWN = 160
"""Characters of a text that a dot shows."""

LEGEND = 30
"""Clusters that a PNG names; HTML names all."""

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


def check_map(path: Path) -> None:
    """Raises ValueError if no map can be written there, before any work is done for it."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the map {path} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for the map")


def write_map(
    path: Path,
    clusters: Clusters,
    points: Float[np.ndarray, "N 2"],
    *,
    places: Sequence[str],
    texts: Sequence[str],
    title: str,
) -> None:
    """Write the points, which lie between 0 and 1, as .html or .png, as the name ends.

    `places` say where each text is from and `texts` what it says. HTML shows both under the
    pointer; it has no scripts, and loads nothing.
    """
    check_map(path)
    if path.suffix.lower() == ".html":
        page = render_page(clusters, points, places=places, texts=texts, title=title)
        # A name or a text may hold half a surrogate pair, which UTF-8 has not.
        path.write_bytes(page.encode("utf-8", "replace"))
    else:
        _draw(path, clusters, points, title)


def name_cluster(clusters: Clusters, number: int) -> str:
    """A cluster's number, counted from 1, and its words; "none" for -1."""
    return "none" if number < 0 else f"{number + 1}  {', '.join(clusters.words[number])}"


def present(clusters: Clusters) -> list[int]:
    """The clusters' numbers, -1 last if a text is in none."""
    return [*range(len(clusters.words)), *([-1] if (clusters.numbers < 0).any() else [])]


def color(number: int) -> str:
    """A cluster's colour: neighbouring numbers are far apart, however many there are."""
    if number < 0:
        return GREY
    # The golden ratio never comes back to a hue.
    hue = number * 0.618034 % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.38 + 0.16 * (number % 2), 0.65)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def render_page(
    clusters: Clusters,
    points: Float[np.ndarray, "N 2"],
    *,
    places: Sequence[str],
    texts: Sequence[str],
    title: str,
) -> str:
    """The page of `write_map`."""
    dots, legend = [], []
    # Texts in none first, below the others.
    for number in present(clusters)[::-1]:
        for place in clusters.members(number):
            x, y = points[place] * 1000
            shown = escape(f"{places[place]}\n{first_words(texts[place], SHOWN)}")
            dots.append(
                f'<circle cx="{x:.1f}" cy="{1000 - y:.1f}" r="9" fill="{color(number)}">'
                f"<title>{shown}</title></circle>"
            )
    for number in present(clusters):
        members = clusters.members(number)
        if number >= 0:
            x, y = np.median(points[members], axis=0) * 1000
            dots.append(f'<text x="{x:.1f}" y="{1000 - y:.1f}">{number + 1}</text>')
        name = escape(name_cluster(clusters, number))
        legend.append(f'<li style="--dot:{color(number)}">{name} ({len(members)})</li>')
    return PAGE.format(title=escape(title), dots="\n".join(dots), legend="\n".join(legend))


def _draw(path: Path, clusters: Clusters, points: Float[np.ndarray, "N 2"], title: str) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    numbers = present(clusters)
    named = [name_cluster(clusters, number) for number in numbers[:LEGEND]]
    families, unknown = find_fonts(title + "".join(named))
    # A word may hold a dollar sign, which is no formula.
    with rc_context({"font.family": families, "text.parse_math": False}):
        figure = Figure(figsize=(11, 7), layout="constrained")
        axes = figure.add_subplot()
        for number in numbers[::-1]:
            inside = points[clusters.numbers == number]
            axes.scatter(inside[:, 0], inside[:, 1], s=22, color=color(number), alpha=0.75)
        for number in range(len(clusters.words)):
            x, y = np.median(points[clusters.numbers == number], axis=0)
            axes.annotate(str(number + 1), (x, y), size="large")
        axes.set(xticks=[], yticks=[], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_title(title.translate(unknown))
        # Dots of no text, so that the legend has the clusters' order.
        for number, name in zip(numbers, named, strict=False):
            axes.scatter([], [], color=color(number), label=name.translate(unknown))
        if named:
            figure.legend(loc="outside right upper", fontsize="small", frameon=False)
        figure.savefig(path, dpi=120, format="png")


def find_fonts(text: str) -> tuple[list[str], dict[int, str]]:
    """Families that together have the text's characters, and boxes for those that no font has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.ft2font import FT2Font

    families = ["DejaVu Sans"]
    first = findfont(FontProperties(family=families[0]))
    missing = {ord(sign) for sign in text} - FT2Font(first).get_charmap().keys()
    for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        if not missing:
            break
        # Only the variant that is drawn: a bold one may have other characters. Last Resort has
        # all, as boxes of its own.
        plain = font.style == "normal" and str(font.weight) in ("400", "normal")
        if not plain or font.name.startswith("Last Resort"):
            continue
        if found := missing & FT2Font(font.fname).get_charmap().keys():
            families.append(font.name)
            missing -= found
    return families, {sign: "□" for sign in missing}
