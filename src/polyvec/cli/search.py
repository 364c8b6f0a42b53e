"""The verbs search, dedupe, cluster and classify, as functions that a command line calls.

Their descriptions and examples are in `cli.py`, so that `polyvec --help` need not come here.
"""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from tqdm import tqdm

from polyvec import classification
from polyvec.encoder import Encoder
from polyvec.records import Record, read_records
from polyvec.search import BusyError, Hit, Index, Update, find_duplicates
from polyvec.search.cluster_plot import (
    check_plot_path,
    cluster_title,
    first_words,
    list_cluster_ids,
    write_plot,
)
from polyvec.search.clustering import Clusters, Item, Layout, cluster_items, plot_points, read_items
from polyvec.search.vectors import Quantise
from polyvec.terminal import json_line, note, plain

WINDOW = 2_048
"""Texts that are read, classified and written together."""

LINE = 72
"""Characters of a text that a line shows."""


def search(
    folder: Annotated[Path, Parameter(name="DIR")],
    question: str | None = None,
    /,
    *,
    top: int = 5,
    near: Path | None = None,
    path: str | None = None,
    since: datetime | None = None,
    by: Literal["ranks", "scores"] = "scores",
    weight: dict[str, float] | None = None,
    rerank: int = 0,
    explain: Annotated[bool, Parameter(negative=())] = False,
    watch: Annotated[bool, Parameter(negative=())] = False,
    index: Path | None = None,
    dim: int | None = None,
    quantise: Quantise | None = None,
    model: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Find the passages of a folder's files that answer a question, by meaning and by words.

    Parameters
    ----------
    folder
        The folder; text, Markdown, source code, HTML, PDF, CSV and JSON lines are searched.
    question
        What to look for, in any of the model's languages.
    top
        Passages to show.
    near
        Instead of a question, a file: the other files most like it are shown.
    path
        Only files whose path below DIR fits this, as in "*.md" or "letters/*".
    since
        Only files written since this date.
    by
        How components are put together: by their scores, or by their rankings.
    weight
        How much a component counts, 0 for not at all: --weight.bm25 0.5. They are dense (meaning,
        1), bm25 (words, 0.25) and, where the model has it, sparse (learned words, 0).
    rerank
        Put so many first passages, and at least those shown, in order by their tokens' vectors
        (MaxSim).
    explain
        Show what each component said of a passage: its rank, its score, its share of the whole.
    watch
        Keep the index up to date as files change and tell what changed, until Ctrl-C. The question
        is answered again after every change; more of them are read from standard input, one a line.
    index
        Where to keep the index; by default in DIR/.polyvec.
    dim
        Numbers in each vector, one of the model's Matryoshka sizes; by default as the index is,
        and all in a new one.
    quantise
        How vectors are kept: float, int8 (a quarter of the size), or binary (int8, and found by a
        bit a number). By default as the index is, and float in a new one.
    model
        A model folder or a name on the Hugging Face hub; by default the bundled model.
    json
        Print one JSON object a passage.

    """
    if top < 1:
        raise ValueError(f"--top is {top}, must be at least 1")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if question is not None and near is not None:
        raise ValueError("give a QUESTION or --near FILE, not both")
    if question is None and near is None and not watch:
        raise ValueError("give a QUESTION, or --near FILE")
    if question is not None and not question.strip():
        raise ValueError("the question is empty")
    target = Index(folder, Encoder.load(model), directory=index, dim=dim, quantise=quantise)

    def answer(asked: str | None) -> None:
        started = time.perf_counter()
        if asked is not None:
            hits = target.search(
                asked, top=top, by=by, weights=weight, rerank=rerank, path=path, since=since
            )
        elif near is not None:
            hits = target.find_similar(near, top=top, path=path, since=since)
        else:
            return
        note(f"answered in {time.perf_counter() - started:.3f} s")
        for hit in hits:
            sys.stdout.write(_as_json(hit, explain) if json else _as_text(hit, folder, explain))
        # A watcher's reader waits for each answer.
        sys.stdout.flush()

    if watch:
        _watch(target, question, answer)
    else:
        _update(target)
        answer(question)


def dedupe(
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    threshold: float = 0.95,
    model: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Find files of a folder that say the same, in other words or another language too.

    Parameters
    ----------
    folder
        The folder; the kinds of files that `polyvec search` reads.
    threshold
        From which cosine on two files are taken to say the same.
    model
        A model folder or a name on the Hugging Face hub; by default the bundled model.
    json
        Print one JSON object a group.

    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    with _progress() as bar:
        groups = find_duplicates(
            folder,
            Encoder.load(model),
            threshold=threshold,
            on_skipped=lambda sentence: note(f"skipped {sentence}"),
            progress=lambda path: bar.update(),
        )
    for group in groups:
        if json:
            sys.stdout.write(json_line(asdict(group)))
        else:
            copies = [f"{score:.2f}  {folder / path}\n" for path, score in group.copies]
            sys.stdout.write("".join([f"      {folder / group.path}\n", *copies]) + "\n")
    copies = sum(len(group.copies) for group in groups)
    note(f"{copies} copies of {len(groups)} files")


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
        check_plot_path(map)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    encoder = Encoder.load(model)
    started = time.perf_counter()
    items = read_items(
        folder,
        encoder.tokenizer,
        each=each,
        on_skipped=lambda sentence: note(f"skipped {sentence}"),
    )
    found = cluster_items(items, encoder, min_size=min_size, task=task)
    seconds = time.perf_counter() - started
    if json:
        sys.stdout.writelines(_cluster_lines(found, items))
    else:
        sys.stdout.write(_show_clusters(found, items, folder, top))
    outside = int((found.cluster_ids < 0).sum())
    note(f"{len(items)} {each}s: {len(found.words)} clusters, {outside} in none ({seconds:.2f} s)")
    if map is not None:
        title = f"{folder}: {len(items)} {each}s"
        points = plot_points(found.vectors, layout)
        places = [_place(item) for item in items]
        write_plot(
            map, found, points, locations=places, texts=[item.text for item in items], title=title
        )
        note(f"wrote {map}")


def classify(
    *texts: str,
    input: Annotated[list[Path] | None, Parameter(name=["--input", "-i"], negative=())] = None,
    labels: Annotated[list[str] | None, Parameter(name=["--labels", "-l"], negative=())] = None,
    examples: Path | None = None,
    task: str = classification.TASK,
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
        classifier = classification.learn_names(encoder, labels or [], task=task)
    else:
        try:
            classifier = classification.learn_examples(encoder, *known, task=task)
        except ValueError as error:
            raise ValueError(f"{examples}: {error}") from None
    records = ({"text": text} for text in texts) if texts else read_records(input or [Path("-")])
    _classify_records(encoder, classifier, iter(records), json)


def _update(target: Index) -> None:
    """Bring the index up to date, unless another process is at it, and tell what that did."""
    started = time.perf_counter()
    try:
        with _progress() as bar:
            update = target.update(lambda path: bar.update())
    except BusyError as busy:
        note(f"{busy}; searching it as it is")
    else:
        _tell_update(update, time.perf_counter() - started)


def _watch(target: Index, question: str | None, answer: Callable[[str | None], None]) -> None:
    """Keep the index up to date and answer questions, until interrupted."""
    from polyvec.search.watch import read_questions, watch_index

    started = time.perf_counter()
    told = set[str]()
    try:
        with _progress() as bar:
            events = watch_index(target, read_questions(), lambda path: bar.update())
            first = next(events)
        if isinstance(first, Update):
            _tell_update(first, time.perf_counter() - started)
            told.update(first.skipped)
        else:
            note(f"{first}; searching it as it is")
        note(f"watching {target.folder}; Ctrl-C ends it")
        answer(question)
        for event in events:
            if not isinstance(event, Update):
                answer(str(event))
                continue
            for path in event.changed:
                note(f"changed {target.folder / path}")
            for path in event.removed:
                note(f"removed {target.folder / path}")
            for sentence in event.skipped:
                if sentence not in told:
                    note(f"skipped {sentence}")
            told = set(event.skipped)
            answer(question)
    except KeyboardInterrupt:
        note("stopped watching")


def _progress() -> tqdm:
    return tqdm(unit="file", delay=0.5, leave=False, disable=None)


def _tell_update(update: Update, seconds: float) -> None:
    for sentence in update.skipped:
        note(f"skipped {sentence}")
    if update.rebuilt:
        note(f"rebuilt the index, since {update.rebuilt}")
    news = f"{len(update.changed)} new or changed, {len(update.removed)} removed"
    size = f"{update.files} files, {update.passages} passages ({news})"
    note(f"indexed {size} in {seconds:.2f} s")


def _as_json(hit: Hit, explain: bool) -> str:
    fields = asdict(hit)
    if not explain:
        del fields["parts"]
    return json_line(fields | {"score": round(hit.score, 6)})


def _as_text(hit: Hit, folder: Path, explain: bool) -> str:
    lines = [line.strip() for line in hit.text.strip().splitlines() if line.strip()]
    place = f":{hit.line}" if hit.page is None else f", page {hit.page}"
    head = f"{hit.score:.2f}  {folder / hit.path}{place}"
    if explain:
        lines = [
            *(
                f"{name:6} no. {part.rank:<3} {part.score:8.3f}  adds {part.share:.3f}"
                for name, part in hit.parts.items()
            ),
            *lines,
        ]
    return plain("\n".join([head, *(f"    {line}" for line in lines), "", ""]))


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
    encoder: Encoder, classifier: classification.Classifier, records: Iterable[Record], json: bool
) -> None:
    # A text of no words has no label, but its line stays, since others count lines.
    while window := list(islice(records, WINDOW)):
        wordy = [record["text"] for record in window if record["text"].strip()]
        shares = iter(classification.classify(encoder, classifier, wordy))
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
                sys.stdout.write(plain(line) + "\n")


def _cluster_lines(found: Clusters, items: list[Item]) -> Iterable[str]:
    for item, number, score in zip(
        items, found.cluster_ids.tolist(), found.scores.tolist(), strict=True
    ):
        place = {"path": item.path, "line": item.line, "page": item.page, "text": item.text}
        inside = {"cluster": None, "words": [], "score": None}
        if number >= 0:
            words = found.words[number]
            inside = {"cluster": number + 1, "words": words, "score": round(score, 6)}
        yield json_line(place | inside)


def _show_clusters(found: Clusters, items: list[Item], folder: Path, top: int) -> str:
    lines = []
    for number in list_cluster_ids(found):
        members = found.members(number)
        lines.append(f"{cluster_title(found, number)}  ({len(members)})")
        for place in members[:top]:
            text = first_words(items[place].text, LINE)
            score = f"{found.scores[place]:.2f}" if number >= 0 else "    "
            lines.append(f"    {score}  {folder / _place(items[place])}  {text}")
        lines.append("")
    return "".join(plain(line) + "\n" for line in lines)


def _place(item: Item) -> str:
    if item.line is not None:
        return f"{item.path}:{item.line}"
    return item.path if item.page is None else f"{item.path}, page {item.page}"
