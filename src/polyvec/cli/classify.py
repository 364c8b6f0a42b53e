"""`polyvec classify`: a label for each text."""

import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from polyvec.terminal import ExitStatus, json_line, note, plain, shorten

if TYPE_CHECKING:
    from polyvec.classification import Classifier
    from polyvec.encoder import Encoder
    from polyvec.records import Report, Row

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
    text_column: str = "text",
    label_column: str | None = None,
    id_column: str | None = None,
    rejected: Path | None = None,
    task: str = "classification",
    model: str | None = None,
    json: bool = False,
) -> ExitStatus:
    """Give each text a label, by the names of the labels or by labelled examples.

    Every text has one line of output. A text without words has no label. If the input has labels
    of its own, they are shown beside the new ones, and the accuracy is printed. A row that cannot
    be used is set aside, and the exit status is 1.

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
        A .csv, .tsv, .jsonl, .ndjson, .json or .parquet file with the columns "text" and "label".
        A few examples of each label give better results than the names.
    text_column
        The column that has the texts.
    label_column
        The column that has the labels of the examples, and the given labels of the input. The
        default is "label".
    id_column
        A column that identifies a row, which is shown before the text.
    rejected
        The file for rows that are set aside, in JSON lines. By default, they are only named.
    task
        What the vectors are for.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    json
        Print one JSON object per text. It has the fields of the input and the score of every
        label. A label that was given is called "given_label".

    """
    from polyvec.cli.inputs import check_inputs, read_texts

    check_inputs("classify", texts, input)
    if labels is not None and examples is not None:
        raise ValueError("give labels with --labels, or examples with --examples, not both")
    if labels is None and examples is None:
        raise ValueError("give labels with --labels NAME --labels NAME, or --examples FILE")
    from polyvec import classification
    from polyvec.encoder import Encoder
    from polyvec.records import text_columns
    from polyvec.rejected_rows import set_aside

    with set_aside(rejected) as report:
        # Only examples must have labels, unless there are none.
        needed = label_column if examples is None and not texts else None
        columns = text_columns(text_column, id_column, given=needed)
        label_column = label_column or "label"
        rows = read_texts(texts, input, columns, text_column, report)
        known = None
        if examples is not None:
            known = read_examples(examples, text_column, label_column, report)
        encoder = Encoder.load(model)
        if known is None:
            classifier = classification.learn_names(encoder, labels or [], task=task)
        else:
            try:
                classifier = classification.learn_examples(encoder, *known, task=task)
            except ValueError as error:
                raise ValueError(f"{examples}: {error}") from None
        num_texts = num_given = num_right = 0
        while window := list(islice(rows, WINDOW_TEXTS)):
            num_texts += len(window)
            for row, scores in _score_rows(encoder, classifier, window, text_column, report):
                label = max(scores, key=lambda name: scores[name], default=None)
                given = given_label(row.record, label_column)
                if label is not None and given is not None:
                    num_given += 1
                    num_right += label == given
                if json:
                    sys.stdout.write(_as_json(row.record, label, scores))
                else:
                    sys.stdout.write(
                        _as_line(row.record, label, scores, text_column, label_column, id_column)
                    )
    if num_given:
        note(
            f"accuracy {num_right / num_given:.3f}: {num_right:,} of {num_given:,} texts have the "
            f"label that is given in the column {label_column}"
        )
    if not num_texts and not report.count:
        note(f"there is no text to classify in {', '.join(map(str, input or ['standard input']))}")
    return ExitStatus.DONE if num_texts and not report.count else ExitStatus.INCOMPLETE


def given_label(record: Mapping[str, Any], column: str) -> str | None:
    """Return the label that came with a text, or None."""
    from polyvec.records import as_label, plain_value

    try:
        return as_label(plain_value(record.get(column)))
    except ValueError:
        return None


def read_examples(
    path: Path, text_column: str, label_column: str, report: "Report"
) -> tuple[list[str], list[str]]:
    """Return the texts of a file and the label of each.

    `report` is told of the rows without a text or a label. Raises ValueError with the name of the
    file if it has no other rows.
    """
    from polyvec.records import BadRow, Columns, as_label, as_text, read_files

    columns = Columns(
        needed={"text": as_text, "label": as_label},
        aliases={"text": text_column, "label": label_column},
    )
    bad: list[BadRow] = []
    records = [row.record for row in read_files([path], columns, report=bad.append)]
    if not records:
        raise ValueError(f"{path} has no examples" + (f"; {bad[0]}" if bad else ""))
    for row in bad:
        report(row)
    return [record["text"] for record in records], [record["label"] for record in records]


def _score_rows(
    encoder: "Encoder",
    classifier: "Classifier",
    rows: "list[Row]",
    text_column: str,
    report: "Report",
) -> "Iterable[tuple[Row, dict[str, float]]]":
    """Yield the rows with the score of each label; there is none for a text without words.

    A text without words has no label, but it has a line, since other programs count lines. A row
    whose text has no finite embedding is reported.
    """
    import numpy as np

    from polyvec.row_encoding import NO_EMBEDDING, encode_finite

    with_words = [row for row in rows if row.record[text_column].strip()]
    texts = [row.record[text_column] for row in with_words]
    vectors = encode_finite(encoder, texts, task=classifier.task)
    is_usable: list[bool] = np.isfinite(vectors).all(axis=1).tolist()
    shares = iter(classifier.probabilities(vectors[np.array(is_usable, bool)]).tolist())
    usable = iter(is_usable)
    for row in rows:
        if not row.record[text_column].strip():
            yield row, {}
        elif next(usable):
            yield row, dict(zip(classifier.labels, next(shares), strict=True))
        else:
            report(row.reject(NO_EMBEDDING))


def _as_json(record: dict[str, Any], label: str | None, scores: Mapping[str, float]) -> str:
    from polyvec.records import join_result

    score = None if label is None else round(scores[label], 6)
    rounded = {name: round(share, 6) for name, share in scores.items()}
    return json_line(join_result(record, {"label": label, "score": score, "scores": rounded}))


def _as_line(
    record: Mapping[str, Any],
    label: str | None,
    scores: Mapping[str, float],
    text_column: str,
    label_column: str,
    id_column: str | None,
) -> str:
    given = given_label(record, label_column)
    parts = [
        "   -" if label is None else f"{scores[label]:.2f}  {label}",
        "" if given is None else f"(given: {given})",
        "" if id_column is None else str(record.get(id_column, "")),
        shorten(record[text_column], LINE_CHARACTERS),
    ]
    return plain("  ".join(filter(None, parts)).rstrip()) + "\n"
