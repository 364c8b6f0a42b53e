"""Texts in, vectors out: lines, JSON lines, CSV, npy and Parquet files, a window at a time.

Axes in this file: N vectors, dim their size.
"""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32
from numpy.lib import format as npy

Record = dict[str, Any]
"""A text under "text", and whatever else came with it."""

Rows = Iterable[tuple[list[Record], Float32[np.ndarray, "N dim"]]]
"""Records and their vectors, some thousands at a time."""


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """One record a line of each file, or a row of a .csv or .tsv file; `-` is standard input.

    A line is the text itself, or in a .jsonl file a JSON string or an object with a "text". A
    table's first row names its columns, of which one is "text".
    Raises ValueError naming the line that is none of this, or not UTF-8.
    """
    for path in paths:
        if str(path) == "-":
            yield from _read_lines(sys.stdin.buffer, path)
        elif path.suffix in (".csv", ".tsv"):
            yield from _read_rows(path)
        else:
            with path.open("rb") as file:
                yield from _read_lines(file, path)


def _read_lines(file: BinaryIO, path: Path) -> Iterator[Record]:
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            value = json.loads(line) if path.suffix == ".jsonl" else line
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        record = value if isinstance(value, dict) else {"text": value}
        if not isinstance(record.get("text"), str):
            raise ValueError(f'{path}, line {number}: needs a string, or an object with a "text"')
        yield record


def _read_rows(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            names = [name.strip() for name in next(rows, [])]
            if "text" not in names:
                has = ", ".join(names) or "none"
                raise ValueError(f'{path}: needs a column "text"; its first line has {has}')
            for cells in rows:
                if cells and len(cells) != len(names):
                    wrong = f"has {len(cells)} cells, the first line {len(names)}"
                    raise ValueError(f"{path}, line {rows.line_num}: {wrong}")
                if cells:
                    yield dict(zip(names, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {rows.line_num}: {error}") from None


def write_vectors(rows: Rows, output: Path | None, kind: str, dim: int) -> None:
    """Write vectors of size `dim` as `kind`: jsonl, npy (vectors alone) or parquet.

    A file appears whole or not at all; None is standard output, for jsonl.
    """
    write = {"jsonl": _write_jsonl, "npy": _write_npy, "parquet": _write_parquet}[kind]
    if output is None:
        assert kind == "jsonl", "the other formats end with what is known at the end"
        write(rows, sys.stdout.buffer, dim)
        return
    # Beside the output, so that the replacement does not cross file systems.
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(rows, file, dim)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _write_jsonl(rows: Rows, file: BinaryIO, dim: int) -> None:
    for records, vectors in rows:
        for record, vector in zip(records, vectors, strict=True):
            start = json.dumps({**record, "embedding": []}, ensure_ascii=False).removesuffix("]}")
            # numpy writes as few digits as give the float32 back, json those of a float64.
            line = start + ", ".join(vector.astype(str)) + "]}\n"
            # A string of JSON may have half a surrogate pair, which UTF-8 has not.
            file.write(line.encode("utf-8", "replace"))


def _write_npy(rows: Rows, file: BinaryIO, dim: int) -> None:
    def write_header(count: int) -> int:
        file.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        npy.write_array_header_1_0(file, header)
        return file.tell()

    # numpy pads the header so that a later, larger first axis takes the same place.
    length, count = write_header(0), 0
    for _, vectors in rows:
        file.write(vectors.astype("<f4").tobytes())
        count += len(vectors)
    rewritten = write_header(count)
    assert rewritten == length, "the header outgrew its place"


def _write_parquet(rows: Rows, file: BinaryIO, dim: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema({"text": pa.string(), "embedding": pa.list_(pa.float32(), dim)})
    with parquet.ParquetWriter(file, schema) as writer:
        for records, vectors in rows:
            texts = pa.array([record["text"] for record in records], pa.string())
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            writer.write_table(pa.table([texts, column], schema=schema))
