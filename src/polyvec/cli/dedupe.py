"""`polyvec dedupe`: files with the same content."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from polyvec.terminal import ExitStatus, file_progress, json_line, note, plain, shorten

LINE_CHARACTERS = 72
"""Characters of a row's text that one line shows."""


def dedupe(
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    threshold: float = 0.95,
    text_column: str | None = None,
    id_column: str | None = None,
    rejected: Path | None = None,
    model: str | None = None,
    json: bool = False,
) -> ExitStatus:
    """Find files, or rows of a file, with the same content, in other words or another language.

    Groups of similar files are listed, and no file is deleted. Each copy has its similarity to the
    first file of its group. A folder without copies is a normal result with exit status 0. The exit
    status is 1 if files were skipped because they cannot be read, or rows were set aside.

    polyvec dedupe notes/

    polyvec dedupe mails.csv --text-column body --id-column number

    polyvec dedupe notes/ --threshold 0.9 --json

    Parameters
    ----------
    folder
        The folder to search. Text, Markdown, source code, HTML, PDF, CSV and JSON lines are read.
        If it is a file, its rows are compared: lines of a text, or rows of a .jsonl, .ndjson,
        .json, .csv, .tsv or .parquet file.
    threshold
        The cosine from which two files count as copies, above 0 and at most 1.
    text_column
        The column that has the texts of the rows. The default is "text".
    id_column
        A column that identifies a row, which is shown before the text.
    rejected
        The file for rows that are set aside, in JSON lines. By default, they are only named.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    json
        Print one JSON object per group.

    """
    if folder.is_file():
        return _dedupe_rows(
            folder, threshold, text_column or "text", id_column, rejected, model, json
        )
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if text_column is not None or id_column is not None:
        raise ValueError(f"{folder} is a folder; --text-column and --id-column are for a table")
    from dataclasses import asdict

    from polyvec.encoder import Encoder
    from polyvec.search import find_duplicates

    skipped: list[str] = []
    with file_progress() as bar:
        groups = find_duplicates(
            folder,
            Encoder.load(model),
            threshold=threshold,
            on_skipped=skipped.append,
            progress=lambda path: bar.update(),
        )
    for sentence in skipped:
        note(f"skipped {sentence}")
    for group in groups:
        if json:
            sys.stdout.write(json_line(asdict(group)))
        else:
            copies = [f"{score:.2f}  {folder / path}\n" for path, score in group.copies]
            sys.stdout.write("".join([f"      {folder / group.path}\n", *copies]) + "\n")
    num_copies = sum(len(group.copies) for group in groups)
    note(f"{num_copies} copies of {len(groups)} files")
    return ExitStatus.INCOMPLETE if skipped else ExitStatus.DONE


def _dedupe_rows(
    file: Path,
    threshold: float,
    text_column: str,
    id_column: str | None,
    rejected: Path | None,
    model: str | None,
    json: bool,
) -> ExitStatus:
    from polyvec.encoder import Encoder
    from polyvec.records import Row, read_files, text_columns
    from polyvec.rejected_rows import set_aside
    from polyvec.search.duplicates import find_duplicate_rows

    def show(row: Row) -> str:
        name = "" if id_column is None else f"  {row.record[id_column]}"
        text = shorten(row.record[text_column], LINE_CHARACTERS)
        return plain(f"{file}:{row.number}{name}  {text}\n")

    with set_aside(rejected) as report:
        rows = read_files([file], text_columns(text_column, id_column), report=report)
        with_words = ((row, row.record[text_column]) for row in rows)
        groups = find_duplicate_rows(
            ((row, text) for row, text in with_words if text.strip()),
            Encoder.load(model),
            threshold=threshold,
            report=report,
        )
        for first, copies in groups:
            if json:
                others = [{"row": row.record, "score": score} for row, score in copies]
                sys.stdout.write(json_line({"row": first.record, "copies": others}))
            else:
                lines = [f"{score:.2f}  {show(row)}" for row, score in copies]
                sys.stdout.write("".join([f"      {show(first)}", *lines]) + "\n")
    num_copies = sum(len(copies) for _, copies in groups)
    note(f"{num_copies} copies of {len(groups)} rows")
    return ExitStatus.INCOMPLETE if report.count else ExitStatus.DONE
