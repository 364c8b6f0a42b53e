"""Rows that are set aside: named on the terminal, and kept in a file beside the output.

A row that cannot be used costs no other row. The file has one JSON object per row with its `file`,
its `number` in the file, the `unit` of the number (such as a line), the `reason`, and the `row`
itself: its values, or the text that stands in the file if these are not known.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from polyvec.records import BadRow
from polyvec.terminal import json_line, note

MAX_NAMED_ROWS = 5
"""Rows that the terminal names; the file has all of them."""

SUFFIX = ".rejected.jsonl"
"""What the name of the file of rejected rows adds to that of the output."""


class RejectedRows:
    """Counts and keeps the rows that are set aside. Call it with each of them."""

    def __init__(self, file: IO[str] | None) -> None:
        """`file` keeps the rows, unless it is None."""
        self.count = 0
        self.first: list[BadRow] = []
        """The first `MAX_NAMED_ROWS` of them."""
        self._file = file

    def __call__(self, bad: BadRow) -> None:
        """Set a row aside."""
        self.count += 1
        if self.count <= MAX_NAMED_ROWS:
            self.first.append(bad)
        if self._file is not None:
            self._file.write(bad_row_line(bad))


def bad_row_line(bad: BadRow) -> str:
    """Return a row that was set aside as one line of JSON."""
    row = bad.row[""] if bad.row.keys() == {""} else bad.row
    fields = {"file": bad.file, "unit": bad.unit, "number": bad.number, "reason": bad.reason}
    fields["row"] = row
    # Bytes that are not text, and halves of surrogate pairs, cannot be written as UTF-8.
    return json_line(fields).encode("utf-8", "backslashreplace").decode()


@contextmanager
def set_aside(path: Path | None) -> Iterator[RejectedRows]:
    """Keep the rows that are rejected meanwhile in the file `path`, unless it is None.

    At the end the first rows are named on the terminal. The file appears only then, and only if
    there are such rows; one from an earlier run is removed. If an exception ends the work, the file
    stays as it was.
    """
    if path is None:
        rejected = RejectedRows(None)
        yield rejected
        _name_rows(rejected, "; --rejected FILE keeps them in a file")
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            rejected = RejectedRows(file)
            yield rejected
        if rejected.count:
            partial.replace(path)
        else:
            path.unlink(missing_ok=True)
        _name_rows(rejected, f": see {path}")
    finally:
        partial.unlink(missing_ok=True)


def _name_rows(rejected: RejectedRows, where: str) -> None:
    """Name the first rows on the terminal, and say where all of them are."""
    for bad in rejected.first:
        note(f"left out {bad}")
    if rejected.count:
        rows = "row" if rejected.count == 1 else "rows"
        note(f"left out {rejected.count:,} {rows} in all{where}")
