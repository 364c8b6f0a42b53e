"""Training data larger than memory: random order in bounded memory, and no position to save.

What a step reads is a function of a seed and the step's number, as in `polyvec.train.data.pairs`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.records import Columns, Report, check_rows, list_blocks, number_rows, warn
from polyvec.records import Record as Row

Window = tuple[int, Callable[[], list[Row | None]]]
"""How many rows it has, and how to read them: None in place of a bad one."""


def shuffle_files(
    files: Sequence[Path],
    columns: Columns,
    *,
    seed: int,
    window: int = 20_000,
    start: int = 0,
    report: Report = warn,
) -> Iterator[Row | None]:
    """The rows of Parquet and JSON lines files, without end, in random order.

    1. Each pass takes the files' blocks in an order of its own.
    2. Blocks are read until a window has at least `window` rows, which are shuffled.

    Row `start` of this order, counted from 0, comes first: a resumed run gives the number of rows
    it has used, and earlier windows are not read again. None stands for a bad row, so that the
    count is of rows on the disk. Memory holds a window and one block more: a row group of Parquet,
    or 1,000 lines.

    Raises ValueError at once, before the first row, where `read_rows` would, and for CSV.
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
) -> Iterator[Row | None]:
    """As `shuffle_files`, for what can be iterated again and again: a streamed `datasets` set.

    A pass goes through the rows as they come; windows are shuffled. What lies before `start` is
    read once more, since only the source could pass over it.
    """
    return _shuffle(_given_windows(rows, columns, window, report), seed, start)


def _shuffle(windows: Iterator[Window], seed: int, start: int) -> Iterator[Row | None]:
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

    def load(numbers: Sequence[int]) -> list[Row | None]:
        rows: list[Row | None] = []
        for block in (blocks[i] for i in numbers):
            slots: list[Row | None] = [None] * block.size
            for number, row in block.check(columns, report):
                slots[number - block.first] = row
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

    # Not itself a generator, so that what is wrong with the files is said at once.
    return windows()


def _given_windows(
    source: Iterable[Mapping[str, Any]], columns: Columns, window: int, report: Report
) -> Iterator[Window]:
    def load(first: int, part: list[Row]) -> list[Row | None]:
        slots: list[Row | None] = [None] * len(part)
        rows = number_rows(part, first)
        for number, row in check_rows(rows, "the rows given", columns, report):
            slots[number - first] = row
        return slots

    while True:
        rows, first = (dict(row) for row in source), 1
        while part := list(islice(rows, window)):
            yield len(part), partial(load, first, part)
            first += len(part)
        if first == 1:
            raise ValueError("there are no rows, or they can be read only once")


def batches(rows: Iterator[Row | None], size: int) -> Iterator[list[Row]]:
    """`size` rows at a time, without the bad ones among them: step s begins at row s * `size`."""
    while True:
        yield [row for row in islice(rows, size) if row is not None]


def plan_turns(weights: Sequence[float], *, steps: int, seed: int) -> list[tuple[int, int]]:
    """For every step the source it reads, by weight, and how many steps have read it before.

    The second number times the batch size is where `shuffle_files` has to start.

    >>> plan_turns([1.0, 3.0], steps=5, seed=0)
    [(1, 0), (1, 1), (0, 0), (0, 1), (1, 2)]
    """
    share = np.asarray(weights, float)
    chosen = np.random.default_rng(seed).choice(len(share), size=steps, p=share / share.sum())
    turns, seen = [], [0] * len(share)
    for source in chosen.tolist():
        turns.append((source, seen[source]))
        seen[source] += 1
    return turns


def check_files(record: Path, files: Sequence[Path]) -> None:
    """Make sure that a resumed run reads what it began with.

    The first call writes each file's size and SHA-256 to `record` (JSON); later ones compare.
    Raises ValueError for a file that is missing, has changed, or was not there before.
    """
    found = {str(file): _fingerprint(file) for file in files}
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found, indent=1) + "\n")
        return
    before = json.loads(record.read_text())
    for name in [*before, *found]:
        if before.get(name) != found.get(name):
            state = "is new" if name not in before else "has changed"
            state = "is no longer read" if name not in found else state
            raise ValueError(
                f"{name} {state} since the run in {record.parent} began; "
                "put the data back as it was, or begin a new run in another folder"
            )


def _fingerprint(file: Path) -> dict[str, str | int]:
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
