"""Files of rows with their vectors, which `polyvec embed` writes: JSON lines, npy and Parquet.

Every column of a row is carried along with its value, and from Parquet to Parquet with its type. A
column that is called "embedding" already is kept as "given_embedding". Rows are written a window at
a time, so memory does not grow with their number.

Axes in this file: N vectors, dim their size.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32
from numpy.lib import format as npy

from polyvec.records import Row, join_result
from polyvec.terminal import json_line, json_value

Window = tuple[list[Row], Float32[np.ndarray, "N dim"]]
"""Some thousands of rows and their vectors."""

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy", ".parquet": "parquet"}
"""The kind of output by the end of its name, in lower case."""

ROWS_SUFFIX = ".rows.jsonl"
"""What the name of the file with the rows of an npy file adds to that of the npy file."""


def write_vectors(
    windows: Iterable[Window],
    output: Path | None,
    kind: str,
    dim: int,
    *,
    keep_rows: bool = True,
) -> int:
    """Write rows with their vectors of size `dim` as `kind`, one of `WRITERS`; return their number.

    The output file appears whole or not at all, and not if there is no row. If `output` is None,
    JSON lines are written to standard output; the other kinds cannot be, since they rewrite their
    beginning or end. An npy file holds the vectors alone, so with `keep_rows` a file with the
    suffix `ROWS_SUFFIX` has the rows, one per vector.
    """
    windows = iter(windows)
    first = next(windows, None)
    if first is None:
        return 0
    windows = chain([first], windows)
    if output is None:
        assert kind == "jsonl", "only JSON lines can be written to standard output"
        return _write_jsonl(windows, sys.stdout.buffer, dim)
    with whole_file(output) as file:
        if kind != "npy" or not keep_rows:
            return WRITERS[kind](windows, file, dim)
        with whole_file(output.with_name(output.name + ROWS_SUFFIX)) as beside:
            return _write_npy(_copy_rows(windows, beside), file, dim)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when it is complete, and only then."""
    # In the same folder, so that the replacement does not cross file systems.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_jsonl(windows: Iterable[Window], file: BinaryIO, dim: int) -> int:
    count = 0
    for rows, vectors in windows:
        for row, vector in zip(rows, vectors, strict=True):
            record = join_result(row.record, {"embedding": []})
            # Parquet has values, such as dates, that JSON has not.
            fields = json.dumps(record, ensure_ascii=False, default=json_value)
            # numpy writes the fewest digits that give the float32 back, json those of a float64.
            # A list, since an interrupt is lost while Python iterates over an array of strings.
            line = fields.removesuffix("]}") + ", ".join(vector.astype(str).tolist()) + "]}\n"
            # An argument of the command line may hold bytes that are not text.
            file.write(line.encode("utf-8", "replace"))
        count += len(rows)
    return count


def _write_npy(windows: Iterable[Window], file: BinaryIO, dim: int) -> int:
    def write_header(count: int) -> int:
        file.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        npy.write_array_header_1_0(file, header)
        return file.tell()

    # numpy pads the header, so that a larger first axis needs no more bytes.
    length, count = write_header(0), 0
    for _, vectors in windows:
        file.write(vectors.astype("<f4").tobytes())
        count += len(vectors)
    rewritten = write_header(count)
    assert rewritten == length, "the header needs more bytes than were kept for it"
    return count


def _copy_rows(windows: Iterable[Window], file: BinaryIO) -> Iterator[Window]:
    """The windows as they are, after their rows were written as JSON lines."""
    for rows, vectors in windows:
        lines = "".join(json_line(row.record) for row in rows)
        file.write(lines.encode("utf-8", "replace"))
        yield rows, vectors


def _write_parquet(windows: Iterable[Window], file: BinaryIO, dim: int) -> int:
    from polyvec.arrow_rows import write_parquet

    return write_parquet(windows, file, dim)


WRITERS = {"jsonl": _write_jsonl, "npy": _write_npy, "parquet": _write_parquet}
"""The kinds of output."""
