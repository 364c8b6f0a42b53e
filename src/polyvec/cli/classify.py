"""`polyvec classify`: a label for each text."""

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from polyvec.terminal import json_line, plain, shorten

if TYPE_CHECKING:
    from polyvec.classification import Classifier
    from polyvec.encoder import Encoder

WINDOW_TEXTS = 2_048
"""Texts that are read, classified and written together."""

LINE_CHARACTERS = 72
"""Characters of a text that one line shows."""


def classify(
    *texts: str,
    input: Annotated[
        list[Path] | None, Parameter(name=["--input", "-i"], allow_leading_hyphen=True)
    ] = None,
    labels: Annotated[list[str] | None, Parameter(name=["--labels", "-l"])] = None,
    examples: Path | None = None,
    task: str = "classification",
    model: str | None = None,
    json: bool = False,
) -> None:
    """Give each text a label, by the names of the labels or by labelled examples.

    Every text has one line of output. A text without words has no label.

    polyvec classify "They won the final 3:1" --labels sport --labels politics

    polyvec classify --input mails.csv --examples labelled.csv --json

    Parameters
    ----------
    texts
        The texts. If there are no texts and no --input, each line of standard input is a text.
    input
        A file with one text per line, or a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file
        whose rows have a column "text". "-" is standard input with one text per line. Repeat the
        option to read several files.
    labels
        The name of a label: a word or a description. Repeat the option, to give at least two.
    examples
        A .csv, .tsv or .jsonl file with the columns "text" and "label". A few examples of each
        label give better results than the names.
    task
        What the vectors are for.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    json
        Print one JSON object per text. It has the fields of the input and the score of every
        label.

    """
    if texts and input:
        raise ValueError("give texts as arguments or with --input, not both")
    if not texts and not input and sys.stdin.isatty():
        raise ValueError('give texts, as in: polyvec classify "some text"; or --input FILE')
    if (labels is None) == (examples is None):
        raise ValueError("give labels with --labels NAME --labels NAME, or --examples FILE")
    from polyvec import classification
    from polyvec.encoder import Encoder
    from polyvec.records import read_records

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


def read_examples(path: Path) -> tuple[list[str], list[str]]:
    """Return the texts of a file and the label of each.

    Raises ValueError that names the file and the first record without a label.
    """
    from polyvec.records import read_records

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
    encoder: "Encoder", classifier: "Classifier", records: Iterable[dict[str, Any]], json: bool
) -> None:
    from polyvec import classification

    # A text without words has no label, but it has a line, since other programs count lines.
    while window := list(islice(records, WINDOW_TEXTS)):
        with_words = [record["text"] for record in window if record["text"].strip()]
        shares = iter(classification.classify(encoder, classifier, with_words))
        for record in window:
            scores: dict[str, float] = {}
            if record["text"].strip():
                scores = dict(zip(classifier.labels, next(shares).tolist(), strict=True))
            label = max(scores, key=lambda name: scores[name], default=None)
            if json:
                score = None if label is None else round(scores[label], 6)
                rounded = {name: round(score, 6) for name, score in scores.items()}
                result = {"label": label, "score": score, "scores": rounded}
                sys.stdout.write(json_line(record | result))
            else:
                head = "   -" if label is None else f"{scores[label]:.2f}  {label}"
                line = f"{head}  {shorten(record['text'], LINE_CHARACTERS)}".rstrip()
                sys.stdout.write(plain(line) + "\n")
