"""Training data larger than memory: rows in random order, with bounded memory.

The rows of a step follow from a seed and the step's number, as in `polyvec.train.data.batches`, so
no position has to be saved.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.records import (
    Columns,
    Record,
    Report,
    check_rows,
    list_blocks,
    number_rows,
    warn,
)

Window = tuple[int, Callable[[], list[Record | None]]]
"""The number of rows of a window, and a function that reads them, with None for a bad row."""


def shuffle_files(
    files: Sequence[Path],
    columns: Columns,
    *,
    seed: int,
    window: int = 20_000,
    start: int = 0,
    report: Report = warn,
) -> Iterator[Record | None]:
    """Endless iterator over the rows of Parquet and JSON lines files, in random order.

    1. Each pass over the data takes the blocks of all files in a new random order.
    2. Blocks are read until a window has at least `window` rows. These are shuffled.

    The iterator begins at row `start` of this order, counted from 0: a resumed run passes the
    number of rows that it has used, and earlier windows are not read again. A bad row is returned
    as None, so that the count includes all rows on the disk. Memory holds one window and one more
    block, which is a row group of Parquet or 1,000 lines.

    Raises ValueError before the first row, for the same reasons as `read_rows`, and for CSV.
    """
    return _shuffle(_file_windows(files, columns, seed, window, report), seed, start)


def shuffle_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Columns,
    *,
    seed: int,
    window: int = 20_000,
    start: int = 0,
    report: Report = warn,
) -> Iterator[Record | None]:
    """Like `shuffle_files`, for an iterable that can be repeated, such as a streamed dataset.

    A pass takes the rows in their own order, and shuffles each window. Rows before `start` are
    read again, because only the source could skip them.
    """
    return _shuffle(_given_windows(rows, columns, window, report), seed, start)


def _shuffle(windows: Iterator[Window], seed: int, start: int) -> Iterator[Record | None]:
    position = 0
    for number, (size, load) in enumerate(windows):
        if position + size > start:
            rows = load()
            order = np.random.default_rng([seed, 0, number]).permutation(size)
            for i in order[max(0, start - position) :]:
                yield rows[i]
        position += size


def _file_windows(
    files: Sequence[Path], columns: Columns, seed: int, window: int, report: Report
) -> Iterator[Window]:
    blocks = [block for file in files for block in list_blocks(file, columns) if block.size]
    if not blocks:
        raise ValueError(f"no rows in {', '.join(map(str, files)) or 'no files'}")

    def load(numbers: Sequence[int]) -> list[Record | None]:
        rows: list[Record | None] = []
        for block in (blocks[i] for i in numbers):
            slots: list[Record | None] = [None] * block.size
            for row in block.check(columns, report):
                slots[row.number - block.first] = row.record
            rows += slots
        return rows

    def windows() -> Iterator[Window]:
        for turn in count():
            chosen, size = list[int](), 0
            for i in np.random.default_rng([seed, 1, turn]).permutation(len(blocks)).tolist():
                chosen.append(i)
                size += blocks[i].size
                if size >= window:
                    yield size, partial(load, chosen)
                    chosen, size = [], 0
            if chosen:
                yield size, partial(load, chosen)

    # This function is not a generator, so that errors in the files are raised immediately.
    return windows()


def _given_windows(
    source: Iterable[Mapping[str, Any]], columns: Columns, window: int, report: Report
) -> Iterator[Window]:
    def load(first: int, part: list[Record]) -> list[Record | None]:
        slots: list[Record | None] = [None] * len(part)
        rows = number_rows(part, first)
        for row in check_rows(rows, "the rows given", columns, report):
            slots[row.number - first] = row.record
        return slots

    while True:
        rows, first = (dict(row) for row in source), 1
        while part := list(islice(rows, window)):
            yield len(part), partial(load, first, part)
            first += len(part)
        if first == 1:
            raise ValueError(
                "there are no rows, or they can be read only once; "
                "pass an iterable that can be repeated"
            )


def group_rows(rows: Iterator[Record | None], size: int) -> Iterator[list[Record]]:
    """Groups of `size` rows, without the bad ones. Step s begins at row s * `size`."""
    while True:
        yield [row for row in islice(rows, size) if row is not None]


def check_files(record: Path, files: Sequence[Path]) -> None:
    """Check that a resumed run reads the same files as when it began.

    The first call writes the size and the SHA-256 of each file to `record` (JSON). Later calls
    compare. Raises ValueError for a file that is missing, changed or new.
    """
    now = {str(file): _fingerprint(file) for file in files}
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(now, indent=1) + "\n")
        return
    before = json.loads(record.read_text())
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            state = "is new" if name not in before else "has changed"
            state = "is no longer read" if name not in now else state
            raise ValueError(
                f"{name} {state} since the run in {record.parent} began; "
                "restore the data, or begin a new run in another folder"
            )


def _fingerprint(file: Path) -> dict[str, str | int]:
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
