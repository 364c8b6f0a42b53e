"""The verbs `polyvec cluster` and `polyvec classify`, as functions that a command line calls."""

import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from polyvec.encoder import Encoder
from polyvec.records import Record, read_records
from polyvec.search import labels as labelling
from polyvec.search.maps import check_map, first_words, name_cluster, present, write_map
from polyvec.search.topics import Clusters, Item, Layout, cluster_items, lay_out, read_items
from polyvec.terminal import CONTROLS, json_line, note

WINDOW = 2_048
"""Texts that are read, classified and written together."""

LINE = 72
"""Characters of a text that a line shows."""


def cluster(
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    each: Literal["passage", "file"] = "passage",
    min_size: int | None = None,
    top: int = 3,
    map: Path | None = None,
    layout: Layout | None = None,
    task: str = "separation",
    model: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Find what a folder is about: its passages in clusters, each with the words that set it apart.

    Passages that belong nowhere are in "none". Nothing is written but the map.

    polyvec cluster notes/ --map topics.html

    polyvec cluster notes/ --each file --min-size 5 --json

    Args:
        folder: The folder; the kinds of files that `polyvec search` reads.
        each: What is put into clusters: passages, or whole files.
        min_size: Texts in the smallest cluster; by default half the square root of all, at least 3.
        top: Texts of each cluster to show, the most typical first.
        map: An .html or .png file to write: a dot a text, like ones near each other.
        layout: How the map is drawn; by default tsne, and pca for more than 3,000 texts.
        task: What the vectors are for.
        model: A model folder or a name on the Hugging Face hub; by default the bundled model.
        json: Print one JSON object a text, with its cluster's number and words; in none, null.

    """
    if min_size is not None and min_size < 2:
        raise ValueError(f"--min-size is {min_size}, must be at least 2")
    if top < 0:
        raise ValueError(f"--top is {top}, must be at least 0")
    if map is not None:
        check_map(map)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    encoder = Encoder.load(model)
    started = time.perf_counter()
    items = read_items(
        folder, encoder.tokenizer, each=each, skipped=lambda sentence: note(f"skipped {sentence}")
    )
    found = cluster_items(items, encoder, min_size=min_size, task=task)
    seconds = time.perf_counter() - started
    if json:
        sys.stdout.writelines(_cluster_lines(found, items))
    else:
        sys.stdout.write(_show_clusters(found, items, folder, top))
    outside = int((found.numbers < 0).sum())
    note(f"{len(items)} {each}s: {len(found.words)} clusters, {outside} in none ({seconds:.2f} s)")
    if map is not None:
        title = f"{folder}: {len(items)} {each}s"
        points = lay_out(found.vectors, layout)
        places = [_place(item) for item in items]
        write_map(
            map, found, points, places=places, texts=[item.text for item in items], title=title
        )
        note(f"wrote {map}")


def classify(
    *texts: str,
    input: Annotated[list[Path] | None, Parameter(name=["--input", "-i"], negative=())] = None,
    labels: Annotated[list[str] | None, Parameter(name=["--labels", "-l"], negative=())] = None,
    examples: Path | None = None,
    task: str = labelling.TASK,
    model: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Give each text a label: by the labels' names alone, or as in a file of labelled examples.

    polyvec classify "They won the final 3:1" --labels sport --labels politics

    polyvec classify --input mails.csv --examples labelled.csv --json

    Args:
        texts: The texts. Without any, and without --input, one a line is read from standard input.
        input: Files with one text a line; in .jsonl files a line is a string or an object with
            "text", .csv and .tsv files have a column "text". "-" is standard input.
        labels: A label's name, a word or a description; give at least two.
        examples: A .csv, .tsv or .jsonl file with a "text" and a "label" each; a few of each label
            are better than the names.
        task: What the vectors are for.
        model: A model folder or a name on the Hugging Face hub; by default the bundled model.
        json: Print one JSON object a text, with its other fields and every label's score.

    """
    if texts and input:
        raise ValueError("give texts as arguments or with --input, not both")
    if not texts and not input and sys.stdin.isatty():
        raise ValueError('give texts, as in: polyvec classify "some text"; or --input FILE')
    if (labels is None) == (examples is None):
        raise ValueError("give labels with --labels NAME --labels NAME, or --examples FILE")
    known = read_examples(examples) if examples is not None else None
    encoder = Encoder.load(model)
    if known is None:
        classifier = labelling.learn_names(encoder, labels or [], task=task)
    else:
        try:
            classifier = labelling.learn_examples(encoder, *known, task=task)
        except ValueError as error:
            raise ValueError(f"{examples}: {error}") from None
    records = ({"text": text} for text in texts) if texts else read_records(input or [Path("-")])
    _classify_records(encoder, classifier, iter(records), json)


def read_examples(path: Path) -> tuple[list[str], list[str]]:
    """The texts of a file and the label of each.

    Raises ValueError naming the file and the record that has none.
    """
    texts, labels = [], []
    for number, record in enumerate(read_records([path]), 1):
        label = record.get("label")
        if isinstance(label, bool) or not isinstance(label, str | int):
            has = ", ".join(record)
            raise ValueError(f'{path}: example {number} lacks a "label"; it has only: {has}')
        texts.append(record["text"])
        labels.append(str(label))
    if not texts:
        raise ValueError(f"{path} has no examples")
    return texts, labels


def _classify_records(
    encoder: Encoder, classifier: labelling.Classifier, records: Iterable[Record], json: bool
) -> None:
    # A text of no words has no label, but its line stays, since others count lines.
    while window := list(islice(records, WINDOW)):
        wordy = [record["text"] for record in window if record["text"].strip()]
        shares = iter(labelling.classify(encoder, classifier, wordy))
        for record in window:
            scores: dict[str, float] = {}
            if record["text"].strip():
                scores = dict(zip(classifier.labels, next(shares).tolist(), strict=True))
            label = max(scores, key=lambda name: scores[name], default=None)
            if json:
                score = None if label is None else round(scores[label], 6)
                rounded = {name: round(score, 6) for name, score in scores.items()}
                found = {"label": label, "score": score, "scores": rounded}
                sys.stdout.write(json_line(record | found))
            else:
                head = "   -" if label is None else f"{scores[label]:.2f}  {label}"
                line = f"{head}  {first_words(record['text'], LINE)}".rstrip()
                sys.stdout.write(line.translate(CONTROLS) + "\n")


def _cluster_lines(found: Clusters, items: list[Item]) -> Iterable[str]:
    for item, number, score in zip(
        items, found.numbers.tolist(), found.scores.tolist(), strict=True
    ):
        place = {"path": item.path, "line": item.line, "page": item.page, "text": item.text}
        inside = {"cluster": None, "words": [], "score": None}
        if number >= 0:
            words = found.words[number]
            inside = {"cluster": number + 1, "words": words, "score": round(score, 6)}
        yield json_line(place | inside)


def _show_clusters(found: Clusters, items: list[Item], folder: Path, top: int) -> str:
    lines = []
    for number in present(found):
        members = found.members(number)
        lines.append(f"{name_cluster(found, number)}  ({len(members)})")
        for place in members[:top]:
            text = first_words(items[place].text, LINE)
            score = f"{found.scores[place]:.2f}" if number >= 0 else "    "
            lines.append(f"    {score}  {folder / _place(items[place])}  {text}")
        lines.append("")
    return "".join(line.translate(CONTROLS) + "\n" for line in lines)


def _place(item: Item) -> str:
    if item.line is not None:
        return f"{item.path}:{item.line}"
    return item.path if item.page is None else f"{item.path}, page {item.page}"
