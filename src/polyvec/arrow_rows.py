"""Rows as columns of Arrow, with the types that they came with, in one Parquet file.

1. Every window of rows becomes a table. Rows that come from Parquet keep their columns as they are;
   the types of other columns follow from their values.
2. The tables are kept in a temporary file, because the type of a column is known only at the end:
   a column of JSON may hold numbers in the first thousand rows and texts after them.
3. Each column gets the narrowest type that holds all of its values. If there is none, its values
   become texts, in JSON where they are not texts already.

Axes in this file: N vectors, dim their size.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from polyvec.records import Row, given_names
from polyvec.terminal import json_value

EMBEDDING = "embedding"


def write_parquet(
    windows: Iterable[tuple[list[Row], Float32[np.ndarray, "N dim"]]], file: BinaryIO, dim: int
) -> int:
    """Write rows and their vectors of size `dim`, and return the number of rows."""
    count, starts, schemas = 0, list[int](), list[pa.Schema]()
    with TemporaryFile(dir=Path(file.name).parent) as kept:
        for rows, vectors in windows:
            table = _make_table(rows, vectors, dim)
            starts.append(kept.tell())
            schemas.append(table.schema)
            with pa.ipc.new_stream(kept, table.schema) as stream:
                stream.write_table(table)
            count += len(rows)
        schema = join_schemas(schemas)
        with pq.ParquetWriter(file, schema) as writer:
            for start in starts:
                kept.seek(start)
                with pa.ipc.open_stream(kept) as stream:
                    writer.write_table(cast_table(stream.read_all(), schema))
    return count


def make_columns(rows: Sequence[Row]) -> pa.Table:
    """The columns of rows, with their types in Arrow where they come from there."""

    def run_of(item: tuple[int, Row]) -> tuple[int, int] | None:
        """A key that is the same for neighbouring rows of one record batch."""
        index, row = item
        return None if row.cells is None else (id(row.cells[0]), row.cells[1] - index)

    parts = []
    for _, group in groupby(enumerate(rows), key=run_of):
        part = [row for _, row in group]
        if part[0].cells is None:
            parts.append(_infer_columns([row.record for row in part]))
        else:
            batch, position = part[0].cells
            parts.append(pa.Table.from_batches([batch.slice(position, len(part))]))
    schema = join_schemas([part.schema for part in parts])
    return pa.concat_tables([cast_table(part, schema) for part in parts])


def join_schemas(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """A schema with the columns of all schemas, each with a type that holds all of its values."""
    fields: dict[str, list[pa.Field]] = {}
    for schema in schemas:
        for field in schema:
            fields.setdefault(field.name, []).append(field)
    joined = []
    for name, same in fields.items():
        field = _join_fields(name, same)
        # The column is empty in the tables that lack it.
        joined.append(field if len(same) == len(schemas) else field.with_nullable(True))
    return pa.schema(joined, metadata=schemas[0].metadata)


def cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns and types of `schema`, which `join_schemas` made."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        if column.type == field.type:
            columns.append(column)
        elif pa.types.is_string(field.type) and not _is_text(column.type):
            columns.append(_as_texts(column.to_pylist()))
        else:
            columns.append(column.cast(field.type, safe=False))
    return pa.table(columns, schema=schema)


def _make_table(rows: list[Row], vectors: Float32[np.ndarray, "N dim"], dim: int) -> pa.Table:
    columns = make_columns(rows)
    names = given_names(columns.column_names, {EMBEDDING})
    columns = columns.rename_columns([names[name] for name in columns.column_names])
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
    return columns.append_column(pa.field(EMBEDDING, embeddings.type), embeddings)


def _infer_columns(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table(
        {name: _infer_array([record.get(name) for record in records]) for name in names}
    )


def _infer_array(values: list[Any]) -> pa.Array:
    """Values in the type that Arrow finds for them, or as texts if it finds none."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return _as_texts(values)


def _as_texts(values: list[Any]) -> pa.Array:
    texts = [
        value
        if value is None or isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=json_value)
        for value in values
    ]
    return pa.array(texts, pa.string())


def _is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of text, perhaps with a dictionary, or of missing values alone."""
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value_type) or pa.types.is_null(value_type)


def _join_fields(name: str, fields: Sequence[pa.Field]) -> pa.Field:
    different = list({field.type: field for field in fields}.values())
    try:
        schemas = [pa.schema([field]) for field in different]
        field = pa.unify_schemas(schemas, promote_options="permissive").field(0)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.field(name, pa.string())
    # Parquet has no object without fields.
    return pa.field(name, pa.string()) if "struct<>" in str(field.type) else field
