"""The one reader of rows, from text files (`polyvec.text_rows`) and Parquet, a few at a time.

A row becomes a record, which maps the columns' names to values. A text alone is a record whose only
column is "text". The end of a file's name, in upper or lower case, says how the file is read; the
name `-` is standard input, with one text per line.

A row that cannot be used is given to a function, `report`, which raises (`refuse`), logs (`warn`)
or keeps it. A file that cannot be used raises ValueError with the name of the file. Rows are
numbered from 1; in a text file the number is that of the line on which the row begins.

Parquet needs pyarrow, which is imported only then.
"""

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polyvec import text_rows
from polyvec.text_rows import (
    ParsedRow,
    Record,
    check_columns,
    decode_lines,
    is_utf8,
    parse_text,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

SUFFIXES = (*text_rows.SUFFIXES, ".parquet")
"""The ends of names, in lower case, of the files that hold rows."""

BLOCK_ROWS = 1_000
"""Lines of a text file in one block, and rows of a Parquet file in memory at a time."""

Unit = Literal["line", "row"]
"""The unit that the number of a row counts."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    number: int
    reason: str
    unit: Unit = "row"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}: {self.reason}"


Report = Callable[[BadRow], object]
"""A function that is told of every bad row."""


def refuse(bad: BadRow) -> None:
    """Raise ValueError with the row's file, number and reason."""
    raise ValueError(str(bad))


def warn(bad: BadRow) -> None:
    """Log that a row was left out."""
    logger.warning("left out %s", bad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns that a caller uses: names, and functions that check and convert a cell.

    Such a function raises ValueError with the end of a sentence that begins with the column's name.
    """

    needed: Mapping[str, Callable[[Any], Any]]
    """A row without one of these is bad, a file without one an error."""

    optional: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """The value is None if the cell is missing or empty."""

    keep_others: bool = False
    """Whether the row's other columns are kept, unchecked. If not, Parquet does not read them."""

    def check(self, record: Mapping[str, Any]) -> Record:
        """The checked values of a row. Raises ValueError naming the first column that is wrong."""
        checked: Record = dict(record) if self.keep_others else {}
        checked |= dict.fromkeys(self.optional)
        for name, convert in {**self.needed, **self.optional}.items():
            if name in self.optional and record.get(name) in (None, ""):
                continue
            try:
                checked[name] = convert(record.get(name))
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        return checked


def as_string(value: Any) -> str:
    """A string, which may be blank."""
    if not isinstance(value, str):
        raise ValueError("is missing" if value is None else f"is {value!r}, must be a text")
    return value


def as_text(value: Any) -> str:
    """A string that is not blank and can be written as UTF-8."""
    text = as_string(value)
    if not text.strip():
        raise ValueError("is empty")
    if not is_utf8(text):
        raise ValueError("is not UTF-8")
    return text


def as_label(value: Any) -> str:
    """A class: a text, or a whole number or truth value as a text."""
    return str(value) if isinstance(value, int) else as_text(value)


def as_number(value: Any) -> float:
    """A finite number; a text file spells it as a text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("is missing" if value is None else f"is {value!r}, must be a number")
    return number


def as_texts(value: Any) -> list[str]:
    """A list of texts, perhaps empty; a text alone is a list of one."""
    return [as_text(text) for text in (value if isinstance(value, list) else [value])]


TEXT = Columns(needed={"text": as_string}, keep_others=True)
"""A text, and whatever else came with it."""


def read_records(paths: Iterable[Path], *, report: Report = refuse) -> Iterator[Record]:
    """The rows of files, each with a string under "text"; `-` is standard input.

    The first bad row raises ValueError, unless `report` does something else.
    """
    for path in paths:
        yield from read_rows(path, TEXT, report=report)


def read_rows(
    source: Path | Iterable[Mapping[str, Any]], columns: Columns, *, report: Report = warn
) -> Iterator[Record]:
    """The good rows of a file, or of any iterable of mappings, in order.

    A `datasets.IterableDataset` is such an iterable. Raises ValueError with the name of the file if
    the file is missing or damaged, or lacks a needed column.
    """
    if isinstance(source, Path):
        name = "standard input" if str(source) == "-" else str(source)
        rows = _read_file(source, columns)
        checked = check_rows(rows, name, columns, report, _unit(source))
    else:
        checked = check_rows(number_rows(source), "the rows given", columns, report)
    for _, record in checked:
        yield record


def number_rows(rows: Iterable[Mapping[str, Any]], first: int = 1) -> Iterator[ParsedRow]:
    """Rows that do not come from a file, numbered from `first`."""
    for number, row in enumerate(rows, first):
        yield ParsedRow(number, dict(row))


def check_rows(
    rows: Iterable[ParsedRow],
    name: str,
    columns: Columns,
    report: Report,
    unit: Unit = "row",
) -> Iterator[tuple[int, Record]]:
    """The numbers and the checked values of the good rows; `report` is told of the bad ones.

    `name` is that of the file, or words for another source.
    """
    for number, record, flaw in rows:
        if record is not None and not flaw:
            try:
                checked = columns.check(record)
            except ValueError as error:
                flaw = str(error)
            else:
                yield number, checked
                continue
        report(BadRow(name, number, flaw, unit))


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring rows of a file that can be read without those before them."""

    path: Path
    offset: int
    """The row group of a Parquet file, else the byte at which the first row begins."""

    first: int
    """The number of the first row."""

    size: int
    """The number of rows, good and bad; blank lines of a text file count as well."""

    def read(self, columns: Columns) -> Iterator[ParsedRow]:
        """The rows, not checked yet."""
        if _suffix(self.path) == ".parquet":
            yield from _read_row_group(self, columns)
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            with decode_lines(file, _suffix(self.path), "utf-8-sig") as lines:
                part = islice(lines, self.size)
                yield from parse_text(part, _suffix(self.path), first=self.first)

    def check(self, columns: Columns, report: Report) -> Iterator[tuple[int, Record]]:
        """The numbers and the checked values of the good rows; `report` is told of the others."""
        unit = _unit(self.path)
        return check_rows(self.read(columns), str(self.path), columns, report, unit)


def list_blocks(path: Path, columns: Columns) -> list[Block]:
    """The blocks of a Parquet file, from its metadata, or of a text file, by reading it once.

    Raises ValueError for a file that cannot be read from the middle, and where `read_rows` does.
    """
    suffix = _suffix(path)
    if suffix in (*text_rows.TABLES, ".json"):
        # A quoted cell may hold line breaks, so only reading from the start finds the rows.
        kind = suffix[1:].upper()
        raise ValueError(f"{path}: {kind} cannot be read from the middle; write it as Parquet")
    _check_file(path, columns)
    return _list_row_groups(path, columns) if suffix == ".parquet" else _list_line_blocks(path)


def _read_file(path: Path, columns: Columns) -> Iterator[ParsedRow]:
    """All rows of a file, not checked yet."""
    _check_file(path, columns)
    if str(path) == "-":
        with decode_lines(sys.stdin.buffer, ".txt") as lines:
            yield from parse_text(lines, ".txt")
    elif _suffix(path) == ".parquet":
        for block in _list_row_groups(path, columns):
            yield from block.read(columns)
    else:
        try:
            with path.open("rb") as file, decode_lines(file, _suffix(path)) as lines:
                yield from parse_text(lines, _suffix(path), needed=columns.needed)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None


def _check_file(path: Path, columns: Columns) -> None:
    """Raise ValueError for a missing file, and for plain text that lacks a needed column."""
    if str(path) != "-" and not path.exists():
        raise ValueError(f"there is no file {path}")
    tables = [suffix for suffix in SUFFIXES if suffix != ".txt"]
    if _suffix(path) not in tables and set(columns.needed) - {"text"}:
        raise ValueError(f"{path}: the name of a table must end in {', '.join(tables)}")


def _list_line_blocks(path: Path) -> list[Block]:
    blocks, offset, first, size, end = list[Block](), 0, 1, 0, 0
    with path.open("rb") as file:
        if text_rows.find_encoding(file.peek(2)) == "utf-16":
            raise ValueError(f"{path}: UTF-16 cannot be read from the middle; write it as UTF-8")
        for number, line in enumerate(file, 1):
            size, end = size + 1, end + len(line)
            if size == BLOCK_ROWS:
                blocks.append(Block(path, offset, first, size))
                offset, first, size = end, number + 1, 0
    return [*blocks, Block(path, offset, first, size)] if size else blocks


def _list_row_groups(path: Path, columns: Columns) -> list[Block]:
    with _open_parquet(path) as file:
        try:
            check_columns(columns.needed, file.schema_arrow.names)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    firsts = accumulate([1, *sizes])
    return [Block(path, *numbers) for numbers in zip(count(), firsts, sizes, strict=False)]


def _read_row_group(block: Block, columns: Columns) -> Iterator[ParsedRow]:
    import pyarrow as pa

    number = block.first
    with _open_parquet(block.path) as file:
        used = {*columns.needed, *columns.optional}
        names = [name for name in file.schema_arrow.names if columns.keep_others or name in used]
        try:
            for batch in file.iter_batches(BLOCK_ROWS, row_groups=[block.offset], columns=names):
                yield from number_rows(batch.to_pylist(), number)
                number += len(batch)
        except (pa.ArrowException, OSError) as error:
            reason = f"is damaged after row {number - 1}: {error}"
            raise ValueError(f"{block.path} {reason}") from None


def _open_parquet(path: Path) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file: {error}") from None


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _unit(path: Path) -> Unit:
    return "row" if _suffix(path) in (".json", ".parquet") else "line"
