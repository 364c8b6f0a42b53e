"""`polyvec cluster`: what the texts of a folder are about."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from polyvec.terminal import ExitStatus, json_line, note, plain, shorten

if TYPE_CHECKING:
    from polyvec.search.clustering import Clusters, Item

LINE_CHARACTERS = 72
"""Characters of a text that one line shows."""


def cluster(
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    each: Literal["passage", "file"] = "passage",
    min_size: int | None = None,
    top: int = 3,
    map: Path | None = None,
    layout: Literal["tsne", "pca"] | None = None,
    task: str = "separation",
    model: str | None = None,
    json: bool = False,
) -> ExitStatus:
    """Find the topics of a folder: clusters of passages, each with its characteristic words.

    Passages that fit no cluster are listed under "none". No file is written but the map. A folder
    without clusters is a normal result with exit status 0. The exit status is 1 if files were
    skipped because they cannot be read.

    polyvec cluster notes/ --map topics.html

    polyvec cluster notes/ --each file --min-size 5 --json

    Parameters
    ----------
    folder
        The folder to search. Text, Markdown, source code, HTML, PDF, CSV and JSON lines are read.
    each
        The unit that is clustered: passages or whole files.
    min_size
        How many texts the smallest cluster has. The default is half the square root of the number
        of texts, and at least 3.
    top
        How many texts of each cluster to show, the most typical ones first.
    map
        The .html or .png file for a map, on which each text is a dot and similar texts are near
        each other.
    layout
        How the map is computed. The default is tsne, or pca for more than 3,000 texts.
    task
        What the vectors are for.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    json
        Print one JSON object per text, with the number and the words of its cluster. The number is
        null if the text fits no cluster.

    """
    if min_size is not None and min_size < 2:
        raise ValueError(f"--min-size is {min_size}, must be at least 2")
    if top < 0:
        raise ValueError(f"--top is {top}, must be at least 0")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    from polyvec.encoder import Encoder
    from polyvec.search.cluster_plot import check_plot_path, write_plot
    from polyvec.search.clustering import cluster_items, plot_points, read_items

    if map is not None:
        check_plot_path(map)
    encoder = Encoder.load(model)
    started = time.perf_counter()
    skipped: list[str] = []
    items = read_items(folder, encoder.tokenizer, each=each, on_skipped=skipped.append)
    for sentence in skipped:
        note(f"skipped {sentence}")
    if not items:
        note(f"there is no text to cluster in {folder}")
        return ExitStatus.INCOMPLETE
    clusters = cluster_items(items, encoder, min_size=min_size, task=task)
    seconds = time.perf_counter() - started
    if json:
        sys.stdout.writelines(_cluster_lines(clusters, items))
    else:
        sys.stdout.write(_show_clusters(clusters, items, folder, top))
    outside = int((clusters.cluster_ids < 0).sum())
    count = f"{len(clusters.words)} clusters, {outside} in none"
    note(f"{len(items)} {each}s: {count} ({seconds:.2f} s)")
    if map is not None:
        title = f"{folder}: {len(items)} {each}s"
        points = plot_points(clusters.vectors, layout)
        places = [_place(item) for item in items]
        write_plot(
            map,
            clusters,
            points,
            locations=places,
            texts=[item.text for item in items],
            title=title,
        )
        note(f"wrote {map}")
    return ExitStatus.INCOMPLETE if skipped else ExitStatus.DONE


def _cluster_lines(clusters: "Clusters", items: list["Item"]) -> Iterable[str]:
    for item, number, score in zip(
        items, clusters.cluster_ids.tolist(), clusters.scores.tolist(), strict=True
    ):
        place = {"path": item.path, "line": item.line, "page": item.page, "text": item.text}
        inside = {"cluster": None, "words": [], "score": None}
        if number >= 0:
            words = clusters.words[number]
            inside = {"cluster": number + 1, "words": words, "score": round(score, 6)}
        yield json_line(place | inside)


def _show_clusters(clusters: "Clusters", items: list["Item"], folder: Path, top: int) -> str:
    from polyvec.search.cluster_plot import cluster_title, list_cluster_ids

    lines = []
    for number in list_cluster_ids(clusters):
        members = clusters.members(number)
        lines.append(f"{cluster_title(clusters, number)}  ({len(members)})")
        for place in members[:top]:
            text = shorten(items[place].text, LINE_CHARACTERS)
            score = f"{clusters.scores[place]:.2f}" if number >= 0 else "    "
            lines.append(f"    {score}  {folder / _place(items[place])}  {text}")
        lines.append("")
    return "".join(plain(line) + "\n" for line in lines)


def _place(item: "Item") -> str:
    if item.line is not None:
        return f"{item.path}:{item.line}"
    return item.path if item.page is None else f"{item.path}, page {item.page}"
