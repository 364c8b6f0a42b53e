"""Spreadsheets of Excel: every row is a passage, as in other tables. Needs `polyvec[documents]`."""

import io
import warnings
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from polyvec.search.readers.archives import BROKEN_ZIP_ERRORS, Archive
from polyvec.search.readers.pieces import Piece, limit_rows
from polyvec.search.readers.rows import spell_record

BROKEN_SHEET_ERRORS = (
    *(ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError, OSError),
    *BROKEN_ZIP_ERRORS,
)
"""The errors that openpyxl raises for damaged files. That of its XML parser is a SyntaxError."""


def sheet_pieces(raw: bytes, *, max_rows: int) -> Iterator[Piece]:
    """Yield the rows of all sheets with their numbers in their sheets; the first row has the names.

    The name of the sheet stands in every row if there are several sheets. Raises Cut after
    `max_rows` rows.
    """
    import openpyxl

    Archive(raw)
    try:
        # It warns of parts that it cannot keep, such as drawings.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Formulas were computed by the program that saved them.
            book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
            sheets = book.worksheets
    except BROKEN_SHEET_ERRORS as error:
        raise ValueError(f"it is damaged or encrypted ({_first_line(error)})") from None
    names = {sheet.title: sheet for sheet in sheets}
    rows = (row for name in names for row in _sheet_rows(names[name], name * (len(names) > 1)))
    yield from limit_rows(rows, max_rows)


def _sheet_rows(sheet: Any, title: str) -> Iterator[Piece]:
    """Yield the rows below the first one that has a cell, or that row if it is the only one."""
    # The size that a sheet states for itself may be a million rows of nothing.
    sheet.reset_dimensions()
    header: list[str] | None = None
    number = first = 0
    is_alone = False
    try:
        for number, cells in enumerate(_without_warnings(sheet.iter_rows(values_only=True)), 1):
            values = [_spell_cell(cell) for cell in cells]
            if not any(values):
                continue
            if header is None:
                header, is_alone, first = values, True, number
                continue
            is_alone = False
            names = [*header, *[""] * (len(values) - len(header))]
            yield number, _spell_row(title, zip(names, values, strict=False))
        if header is not None and is_alone:
            yield first, _spell_row(title, (("", value) for value in header))
    except BROKEN_SHEET_ERRORS as error:
        where = f"the sheet {sheet.title} is damaged after row {number}"
        raise ValueError(f"{where} ({_first_line(error)})") from None


def _without_warnings(rows: Iterator[Any]) -> Iterator[Any]:
    """Yield the rows; openpyxl warns of dates that do not exist, without the name of the file."""
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = next(rows, None)
        if row is None:
            return
        yield row


def _spell_row(title: str, cells: Any) -> str:
    heading = f"{title}\n" if title else ""
    return heading + spell_record(cells) + "\n\n"


def _spell_cell(value: Any) -> str:
    if isinstance(value, datetime) and not (value.hour or value.minute or value.second):
        value = value.date()
    if isinstance(value, date):
        return value.isoformat(" ") if isinstance(value, datetime) else value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
