"""Files of texts with their vectors, which `polyvec embed` writes: JSON lines, npy and Parquet.

Vectors are written a window at a time, so memory does not grow with their number.

Axes in this file: N vectors, dim their size.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32
from numpy.lib import format as npy

from polyvec.records import Record

Windows = Iterable[tuple[list[Record], Float32[np.ndarray, "N dim"]]]
"""Records and their vectors, some thousands at a time."""


def write_vectors(windows: Windows, output: Path | None, kind: str, dim: int) -> None:
    """Write vectors of size `dim` as `kind`: one of `WRITERS`.

    The output file appears whole or not at all. If `output` is None, JSON lines are written to
    standard output; the other kinds cannot be, since they rewrite their beginning or end.
    """
    if output is None:
        assert kind == "jsonl", "only JSON lines can be written to standard output"
        _write_jsonl(windows, sys.stdout.buffer, dim)
        return
    # In the folder of the output, so that the replacement does not cross file systems.
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            WRITERS[kind](windows, file, dim)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _write_jsonl(windows: Windows, file: BinaryIO, dim: int) -> None:
    for records, vectors in windows:
        for record, vector in zip(records, vectors, strict=True):
            # Parquet has values, such as dates, that JSON has not.
            fields = json.dumps({**record, "embedding": []}, ensure_ascii=False, default=str)
            # numpy writes the fewest digits that give the float32 back, json those of a float64.
            # A list, since an interrupt is lost while Python iterates over an array of strings.
            line = fields.removesuffix("]}") + ", ".join(vector.astype(str).tolist()) + "]}\n"
            # A JSON string may hold half of a surrogate pair, which UTF-8 cannot.
            file.write(line.encode("utf-8", "replace"))


def _write_npy(windows: Windows, file: BinaryIO, dim: int) -> None:
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


def _write_parquet(windows: Windows, file: BinaryIO, dim: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema({"text": pa.string(), "embedding": pa.list_(pa.float32(), dim)})
    with parquet.ParquetWriter(file, schema) as writer:
        for records, vectors in windows:
            texts = pa.array([record["text"] for record in records], pa.string())
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            writer.write_table(pa.table([texts, column], schema=schema))


WRITERS = {"jsonl": _write_jsonl, "npy": _write_npy, "parquet": _write_parquet}
"""The kinds of output. npy holds the vectors alone, Parquet also the texts, and JSON lines every
field that came with a text."""
