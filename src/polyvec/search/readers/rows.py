"""Files of rows, in which every row is a passage."""

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from polyvec import text_rows
from polyvec.search.readers.pieces import Cut, Piece, limit_rows
from polyvec.terminal import shorten

MAX_NAME_CHARACTERS = 100
"""A longer name of a column is shortened, since each row repeats it."""

MAX_ROWS = 10_000
"""The rows of a table that are read unless the user asks for more."""


def row_pieces(text: str, suffix: str, *, max_rows: int) -> Iterator[Piece]:
    """Yield each row as lines of `name: value`, and the line on which the row begins.

    A row with more or fewer cells than the header is searched like the others. A row that cannot be
    read is left out: another program may be writing it. Raises Cut after `max_rows` rows, and after
    the last row if one could not be read.
    """
    yield from limit_rows(_spell_rows(text, suffix), max_rows)


def _spell_rows(text: str, suffix: str) -> Iterator[Piece]:
    lines = io.StringIO(text, newline=text_rows.newline_mode(suffix))
    flaws, is_empty = list[str](), True
    for number, record, flaw in text_rows.parse_text(lines, suffix):
        if record is None:
            flaws.append(f"line {number}: {flaw}")
        elif row := spell_record(record.items()):
            is_empty = False
            yield number, row + "\n\n"
    if flaws and is_empty:
        raise ValueError(flaws[0])
    if flaws:
        more = f", and {len(flaws) - 1} more rows" if len(flaws) > 1 else ""
        raise Cut(f"{flaws[0]}{more}; its other rows are read")


def spell_record(record: Iterable[tuple[str, Any]]) -> str:
    """The cells of a row that are not empty, each on a line with the name of its column."""
    cells = [(name, _spell_value(value)) for name, value in record]
    return "\n".join(
        value if name in ("", "text") else f"{shorten(name, MAX_NAME_CHARACTERS)}: {value}"
        for name, value in cells
        if value
    )


def _spell_value(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
