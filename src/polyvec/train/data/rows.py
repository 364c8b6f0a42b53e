"""Rows of training data from Parquet, CSV and JSON lines, in memory or larger than memory.

A row that cannot be used is reported with its file and number and left out; a file that cannot be
used, or is not the one that a run began with, is an error before the first step.

Rows are numbered from 1. In CSV and JSON lines the number is the line's, as an editor shows it.
"""

import csv
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Found = tuple[int, Row | str]
"""A row's number, and the row or what is wrong with it."""

BLOCK = 1_000
"""Lines of a text file that are read together; of a Parquet file it is a row group."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out."""

    file: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.number}: {self.reason}"


Report = Callable[[BadRow], None]


def warn(bad: BadRow) -> None:
    """Say in the log that a row was left out."""
    logger.warning("left out %s", bad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What rows have: names, and functions that check a cell and give its value.

    They raise ValueError with the end of a sentence that begins with the column's name.
    """

    needed: Mapping[str, Callable[[Any], Any]]
    """A row without one of these is bad, a file without one an error."""

    optional: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """None where absent."""

    def check(self, row: Mapping[str, Any]) -> Row:
        """The row's values. Raises ValueError naming the first column that is wrong."""
        found: Row = dict.fromkeys(self.optional)
        for name, read in {**self.needed, **self.optional}.items():
            if name in self.optional and row.get(name) in (None, ""):
                continue
            try:
                found[name] = read(row.get(name))
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        return found


def as_text(value: Any) -> str:
    """A string that is not blank."""
    if not isinstance(value, str):
        raise ValueError("is missing" if value is None else f"is {value!r}, must be a text")
    if not value.strip():
        raise ValueError("is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("is not UTF-8")
    return value


def as_label(value: Any) -> str:
    """A class: a text, or a whole number or truth value as a text."""
    return str(value) if isinstance(value, int) else as_text(value)


def as_number(value: Any) -> float:
    """A finite number, which CSV writes as a text."""
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


def read_rows(
    source: Path | Iterable[Mapping[str, Any]], columns: Columns, *, report: Report = warn
) -> Iterator[Row]:
    """Every good row of a file or of anything that gives mappings, in order, a few at a time.

    A `datasets.IterableDataset` is such a thing. Raises ValueError, naming the file, for a file
    that is missing, damaged, of another kind than Parquet, CSV or JSON lines, or that lacks a
    needed column.
    """
    name = str(source) if isinstance(source, Path) else "the rows given"
    if isinstance(source, Path):
        found = (row for block in list_blocks(source, columns) for row in block.read(columns))
    else:
        found = ((number, dict(row)) for number, row in enumerate(source, 1))
    for _, row in check_rows(found, name, columns, report):
        yield row


def check_rows(
    found: Iterable[Found], name: str, columns: Columns, report: Report
) -> Iterator[tuple[int, Row]]:
    """The good rows with their numbers; the others go to `report`."""
    for number, row in found:
        reason = row
        if isinstance(row, dict):
            try:
                good = columns.check(row)
            except ValueError as error:
                reason = str(error)
            else:
                yield number, good
                continue
        report(BadRow(name, number, str(reason)))


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring rows of a file that can be read without those before them."""

    path: Path
    place: int
    """The row group of a Parquet file, else the byte at which the first row begins."""

    first: int
    """The number of the first row."""

    size: int
    """Rows, good and bad, blank lines of a text file included."""

    def read(self, columns: Columns) -> Iterator[Found]:
        """The rows, not checked yet."""
        return READERS[self.path.suffix](self, columns)


def list_blocks(path: Path, columns: Columns) -> list[Block]:
    """Where a file's blocks are: from a Parquet file's end, or by reading a text file once."""
    if path.suffix not in READERS:
        raise ValueError(f"{path}: the name must end in {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".jsonl":
        return _list_lines(path)
    names = _parquet_names(path) if path.suffix == ".parquet" else _csv_names(path)
    if missing := [name for name in columns.needed if name not in names]:
        raise ValueError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"it has {', '.join(names) or 'none'}"
        )
    if path.suffix == ".csv":
        # A quoted cell may hold line breaks, so only reading from the start finds its rows.
        return [Block(path, 0, 1, 0)]
    blocks, first = [], 1
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        blocks.append(Block(path, group, first, size))
        first += size
    return blocks


def _parquet_names(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from None


def _csv_names(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return next(csv.reader(file), [])


def _list_lines(path: Path) -> list[Block]:
    blocks, place, first, size, end = list[Block](), 0, 1, 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            size, end = size + 1, end + len(line)
            if size == BLOCK:
                blocks.append(Block(path, place, first, size))
                place, first, size = end, number + 1, 0
    return [*blocks, Block(path, place, first, size)] if size else blocks


def _read_parquet(block: Block, columns: Columns) -> Iterator[Found]:
    number = block.first
    try:
        with pq.ParquetFile(block.path) as file:
            wanted = [
                n for n in file.schema_arrow.names if n in {*columns.needed, *columns.optional}
            ]
            for batch in file.iter_batches(BLOCK, row_groups=[block.place], columns=wanted):
                yield from enumerate(batch.to_pylist(), number)
                number += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{block.path} is damaged after row {number - 1}: {error}") from None


def _read_lines(block: Block, columns: Columns) -> Iterator[Found]:
    with block.path.open("rb") as file:
        file.seek(block.place)
        for number, line in enumerate(islice(file, block.size), block.first):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield number, f"is not JSON in UTF-8 ({error})"
                continue
            yield number, row if isinstance(row, dict) else "is not a JSON object"


def _read_csv(block: Block, columns: Columns) -> Iterator[Found]:
    # An undecodable byte becomes a lone surrogate, which `as_text` refuses in its own row.
    with block.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file)
        names, first = next(lines, []), lines.line_num + 1
        while True:
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                yield first, str(error)
            else:
                if cells and len(cells) != len(names):
                    yield first, f"has {len(cells)} cells, the header {len(names)}"
                elif cells:
                    yield first, dict(zip(names, cells, strict=True))
            first = lines.line_num + 1


READERS: dict[str, Callable[[Block, Columns], Iterator[Found]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_lines,
}
