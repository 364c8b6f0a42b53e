"""The one reader of rows, from text files (`polyvec.text_rows`) and Parquet, a few at a time.

A row becomes a record, which maps the columns' names to values. A text alone is a record whose only
column is "text". The end of a file's name, in upper or lower case, says how the file is read; the
name `-` is standard input, with one text per line.

A row that cannot be used is given to a function, `report`, which raises (`refuse`), logs (`warn`)
or keeps it (`polyvec.rejected_rows`). A file that cannot be used raises ValueError with the name of
the file. Rows are numbered from 1; in a text file the number is that of the line on which the row
begins.

Cells may be values of NumPy, pandas and Arrow (`plain_value`).

Parquet needs pyarrow, which is imported only then.
"""

import logging
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate, chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from polyvec import text_rows
from polyvec.text_rows import (
    BrokenRow,
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

HEADED = (*text_rows.TABLES, ".parquet")
"""Those of files whose beginning or end names the columns."""

PDF_START = b"%PDF-"

BLOCK_ROWS = 1_000
"""Lines of a text file in one block, and rows of a Parquet file in memory at a time."""

Unit = Literal["line", "row", "page", "text"]
"""The unit that the number of a row counts."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    number: int
    reason: str
    unit: Unit = "row"

    row: Record = field(default_factory=dict, compare=False)
    """Its values. If these are not known, the row stands under "" as it is in the file."""

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be used, and where it stands."""

    record: Record
    """The checked values."""

    file: str = "the rows given"
    number: int = 1
    unit: Unit = "row"

    cells: tuple[Any, int] | None = None
    """The row's cells in Arrow, if they come from there: a record batch and a position in it."""

    def reject(self, reason: str) -> BadRow:
        """The row as a bad one."""
        return BadRow(self.file, self.number, reason, self.unit, self.record)


class ArrowRow(NamedTuple):
    """A row of Parquet, before its columns are checked."""

    number: int
    record: Record
    cells: tuple[Any, int]
    """The row's cells in Arrow: a record batch and a position in it."""

    flaw: str = ""


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

    aliases: Mapping[str, str] = field(default_factory=dict)
    """The name that a column has in the file, if it is another one."""

    def check(self, record: Mapping[str, Any]) -> Record:
        """The checked values of a row. Raises ValueError naming the first column that is wrong."""
        checked: Record = dict(record) if self.keep_others else {}
        checked |= dict.fromkeys(self.optional)
        for name, convert in {**self.needed, **self.optional}.items():
            given = self.aliases.get(name, name)
            value = plain_value(record.get(given))
            if name in self.optional and (value is None or value == ""):
                continue
            try:
                checked[name] = convert(value)
            except ValueError as error:
                raise ValueError(f"{given} {error}") from None
        return checked

    @property
    def needed_names(self) -> list[str]:
        """The names that the needed columns have in the file."""
        return [self.aliases.get(name, name) for name in self.needed]


def plain_value(value: Any) -> Any:
    """The Python value of a cell of NumPy, pandas or Arrow; None if the cell is missing.

    pandas marks a missing cell by NaN, NaT or NA.

    >>> plain_value(float("nan")) is None
    True
    """
    # pyarrow and pandas are recognised by what their values can do, so that neither is imported.
    for name in ("as_py", "tolist"):
        convert = getattr(value, name, None)
        if callable(convert):
            value = convert()
    is_missing = isinstance(value, float) and math.isnan(value)
    return None if is_missing or type(value).__name__ in ("NAType", "NaTType") else value


def as_string(value: Any) -> str:
    """A string, which may be blank."""
    if not isinstance(value, str):
        raise ValueError("is missing" if value is None else f"is {value!r}, must be a text")
    return value


def as_id(value: Any) -> Any:
    """Any value but a missing or an empty one."""
    if value is None or value == "":
        raise ValueError("is missing")
    return value


def as_given(value: Any) -> Any:
    """Any value, which may be missing."""
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
    """A class: a text, or a whole number or truth value as a text.

    pandas writes whole numbers as floats where a cell of their column is missing.
    """
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
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
    texts = value if isinstance(value, list | tuple) else [value]
    return [as_text(plain_value(text)) for text in texts]


def text_columns(text: str = "text", *needed: str | None, given: str | None = None) -> Columns:
    """The columns of a verb that reads texts and carries all other columns along.

    `text` has the texts. The rows also need a value in the columns `needed`, where these are named,
    and the file needs the column `given`, whose cells may be empty.
    """
    others: dict[str, Callable[[Any], Any]] = {name: as_id for name in needed if name is not None}
    others |= {} if given is None else {given: as_given}
    return Columns(needed={**others, text: as_string}, keep_others=True)


def join_result(record: Record, result: Mapping[str, Any]) -> Record:
    """The fields of a result after those of the row that it belongs to.

    A field of the row that has the name of a field of the result is kept under the name
    `given_NAME`, so that neither is lost and a result always has the same names.

    >>> join_result({"text": "a", "label": "x"}, {"label": "y"})
    {'text': 'a', 'given_label': 'x', 'label': 'y'}
    """
    names = given_names(record, result)
    return {names[name]: value for name, value in record.items()} | dict(result)


def given_names(names: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """The new name of each column of rows, beside results that take some names."""
    renamed: dict[str, str] = {}
    known = {*names}
    for name in names:
        new = name
        while new in taken or (new != name and new in known):
            new = f"given_{new}"
        renamed[name] = new
    return renamed


def read_files(
    paths: Iterable[Path], columns: Columns, *, report: Report = refuse
) -> Iterator[Row]:
    """The good rows of files, in order; `-` is standard input.

    Raises ValueError for a file that is missing or damaged, or lacks a needed column. All files are
    looked for, and the headers of tables are read, before the first row.
    """
    paths = list(paths)
    for path in paths:
        _check_file(path, columns)
        # A pipe can be read only once.
        if len(paths) > 1 and path.is_file() and _suffix(path) in HEADED:
            next(_read_file(path, columns), None)
    # This function is not a generator, so that a missing file is an error immediately.
    return chain.from_iterable(
        check_rows(_read_file(path, columns), _file_name(path), columns, report, _unit(path))
        for path in paths
    )


def read_rows(
    source: Path | Iterable[Mapping[str, Any]], columns: Columns, *, report: Report = warn
) -> Iterator[Record]:
    """The good rows of a file, or of any iterable of mappings, in order.

    A `datasets.IterableDataset` is such an iterable. Raises ValueError with the name of the file if
    the file is missing or damaged, or lacks a needed column.
    """
    if isinstance(source, Path):
        rows = read_files([source], columns, report=report)
    else:
        rows = check_rows(number_rows(source), "the rows given", columns, report)
    for row in rows:
        yield row.record


def number_rows(rows: Iterable[Mapping[str, Any]], first: int = 1) -> Iterator[ParsedRow]:
    """Rows that do not come from a file, numbered from `first`."""
    for number, row in enumerate(rows, first):
        yield ParsedRow(number, dict(row))


def check_rows(
    rows: Iterable[ParsedRow | ArrowRow],
    name: str,
    columns: Columns,
    report: Report,
    unit: Unit = "row",
) -> Iterator[Row]:
    """The good rows with their checked values; `report` is told of the bad ones.

    `name` is that of the file, or words for another source.
    """
    for row in rows:
        flaw, record = row.flaw, row.record
        if record is None:
            record = {"": row.source} if isinstance(row, BrokenRow) else {}
        elif not flaw:
            try:
                checked = columns.check(record)
            except ValueError as error:
                flaw = str(error)
            else:
                cells = row.cells if isinstance(row, ArrowRow) else None
                yield Row(checked, name, row.number, unit, cells)
                continue
        report(BadRow(name, row.number, flaw, unit, record))


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

    def read(self, columns: Columns) -> Iterator[ParsedRow | ArrowRow]:
        """The rows, not checked yet."""
        if _suffix(self.path) == ".parquet":
            yield from _read_row_group(self, columns)
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            with decode_lines(file, _suffix(self.path), "utf-8-sig") as lines:
                part = islice(lines, self.size)
                yield from parse_text(part, _suffix(self.path), first=self.first)

    def check(self, columns: Columns, report: Report) -> Iterator[Row]:
        """The good rows with their checked values; `report` is told of the others."""
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


def _read_file(path: Path, columns: Columns) -> Iterator[ParsedRow | ArrowRow]:
    """All rows of a file, not checked yet."""
    if str(path) == "-":
        with decode_lines(sys.stdin.buffer, ".txt") as lines:
            yield from parse_text(lines, ".txt")
    elif _suffix(path) == ".parquet":
        for block in _list_row_groups(path, columns):
            yield from block.read(columns)
    else:
        try:
            with path.open("rb") as file, decode_lines(file, _suffix(path)) as lines:
                if not is_table(path):
                    _check_text(file.peek(len(PDF_START)))
                yield from parse_text(lines, _suffix(path), needed=columns.needed_names)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None


def _check_file(path: Path, columns: Columns) -> None:
    """Raise ValueError for a missing file, and for plain text that lacks a needed column."""
    if str(path) != "-" and not path.exists():
        raise ValueError(f"there is no file {path}")
    if str(path) != "-" and path.is_dir():
        raise ValueError(f"{path} is a folder; name the files in it")
    if not is_table(path) and set(columns.needed_names) - {"text"}:
        tables = [suffix for suffix in SUFFIXES if suffix != ".txt"]
        raise ValueError(f"{path}: the name of a table must end in {', '.join(tables)}")


def _check_text(start: bytes) -> None:
    """Raise ValueError if these are the first bytes of a document that is no text."""
    has_zeros = b"\0" in start[:16] and text_rows.find_encoding(start) == "utf-8-sig"
    if has_zeros or start.startswith(PDF_START):
        raise ValueError(
            "is not a text, and its name not that of a table; for its passages, use "
            "polyvec embed --each passage"
        )


def _list_line_blocks(path: Path) -> list[Block]:
    blocks, offset, first, size, end = list[Block](), 0, 1, 0, 0
    with path.open("rb") as file:
        if text_rows.find_encoding(file.peek(4)) != "utf-8-sig":
            raise ValueError(f"{path}: UTF-16 cannot be read from the middle; write it as UTF-8")
        for number, line in enumerate(file, 1):
            size, end = size + 1, end + len(line)
            if size == BLOCK_ROWS:
                blocks.append(Block(path, offset, first, size))
                offset, first, size = end, number + 1, 0
    return [*blocks, Block(path, offset, first, size)] if size else blocks


def _list_row_groups(path: Path, columns: Columns) -> list[Block]:
    with open_parquet(path) as file:
        try:
            check_columns(columns.needed_names, file.schema_arrow.names)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    firsts = accumulate([1, *sizes])
    return [Block(path, *numbers) for numbers in zip(count(), firsts, sizes, strict=False)]


def _read_row_group(block: Block, columns: Columns) -> Iterator[ArrowRow]:
    import pyarrow as pa

    number = block.first
    with open_parquet(block.path) as file:
        used = {columns.aliases.get(name, name) for name in (*columns.needed, *columns.optional)}
        names = [name for name in file.schema_arrow.names if columns.keep_others or name in used]
        try:
            for batch in file.iter_batches(BLOCK_ROWS, row_groups=[block.offset], columns=names):
                for position, record in enumerate(batch.to_pylist()):
                    yield ArrowRow(number + position, record, (batch, position))
                number += len(batch)
        except (pa.ArrowException, OSError) as error:
            reason = f"is damaged after row {number - 1}: {error}"
            raise ValueError(f"{block.path} {reason}") from None


def open_parquet(path: Path) -> "pq.ParquetFile":
    """Open a Parquet file. Raises ValueError with its name if it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise ValueError(f"there is no file {path}")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file: {error}") from None


def is_table(path: Path) -> bool:
    """Whether the rows of a file may have several columns; those of a text have only "text"."""
    return _suffix(path) in SUFFIXES and _suffix(path) != ".txt"


def _file_name(path: Path) -> str:
    return "standard input" if str(path) == "-" else str(path)


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _unit(path: Path) -> Unit:
    return "row" if _suffix(path) in (".json", ".parquet") else "line"
