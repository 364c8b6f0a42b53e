"""How an index keeps its vectors, and which of them are nearest to a question's.

`float`   float32 numbers, which LanceDB compares exactly.
`int8`    a byte a number. LanceDB compares such only with whole numbers; here they are read in
          batches and compared with the question's own, which loses less.
`binary`  a bit a number, beside the int8 vector. LanceDB finds by the bits (Hamming distance)
          some times as many passages as are wanted; these are scored again as in `int8`.

A score is a cosine whatever the form. The question is never rounded, except to find by bits.

Axes in this file: N passages, D numbers in a vector.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt64
from lancedb.query import LanceQueryBuilder, LanceVectorQueryBuilder
from lancedb.table import Table

from polyvec.outputs import to_int8, to_ubinary

Quantise = Literal["float", "int8", "binary"]

FORMS = ("float", "int8", "binary")
"""From the most bytes that a search compares to the fewest: 32, 8 and 1 bit a number."""

OVERSAMPLING = 4
"""How many times as many passages as wanted are found by their bits, to be scored again."""

UNSEEN = {"digest", "modified", "vector", "bits"}
"""Columns that no finder shows."""

Row = Mapping[str, Any]
"""A passage as the table has it, and its "score" by the component that found it."""


def vector_types(quantise: Quantise, dim: int) -> dict[str, pa.DataType]:
    """The table's columns for vectors.

    Raises ValueError for a form that is none, and if there are no whole bytes of bits.
    """
    if quantise not in FORMS:
        raise ValueError(f"quantise is {quantise!r}, must be one of {', '.join(FORMS)}")
    if quantise == "float":
        return {"vector": pa.list_(pa.float32(), dim)}
    if quantise == "int8":
        return {"vector": pa.list_(pa.int8(), dim)}
    if dim % 8:
        raise ValueError(f"binary vectors need a multiple of 8 numbers, not {dim}: choose a dim")
    return {"vector": pa.list_(pa.int8(), dim), "bits": pa.list_(pa.uint8(), dim // 8)}


def pack_vectors(vectors: Float32[np.ndarray, "N D"], quantise: Quantise) -> dict[str, pa.Array]:
    """The columns of `vector_types`, a row a vector."""
    if quantise == "float":
        return {"vector": _fixed(vectors)}
    columns = {"vector": _fixed(to_int8(vectors))}
    return columns if quantise == "int8" else columns | {"bits": _fixed(to_ubinary(vectors))}


def unpack_vectors(column: pa.FixedSizeListArray) -> Float32[np.ndarray, "N D"]:
    """The numbers of a `vector` column in float32; those of int8 are not scaled back."""
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, column.type.list_size).astype(np.float32, copy=False)


def find_nearest(
    table: Table,
    vector: Float32[np.ndarray, " D"],
    *,
    quantise: Quantise,
    depth: int,
    where: str,
    oversampling: int = OVERSAMPLING,
) -> list[Row]:
    """The `depth` rows of the highest cosines with a vector of length 1, the highest first.

    `where` is a condition in SQL, "" for none. Where the table has bits, only the
    `depth * oversampling` rows of the nearest ones are compared.
    """
    if quantise == "float":
        query = _by_distance(table, vector, "vector").distance_type("dot")
        rows = collect(table, query, "_distance", depth, where)
        # LanceDB's dot distance is 1 - dot.
        return [{**row, "score": 1 - row["score"]} for row in rows.to_pylist()]
    if quantise == "int8":
        ids, scores = _scan(table, vector, depth, where)
        found = _take(table, ids)
    else:
        query = _by_distance(table, to_ubinary(vector[None])[0], "bits")
        query = query.distance_type("hamming")  # pyright: ignore[reportArgumentType]
        found = collect(table, query, "_distance", depth * oversampling, where, ["vector"])
        scores = find_cosines(found["vector"].combine_chunks(), vector)
        best = np.argsort(-scores, kind="stable")[:depth]
        found, scores = found.take(best).drop_columns(["vector", "score"]), scores[best]
    return found.append_column("score", pa.array(scores)).to_pylist()


def collect(
    table: Table,
    query: LanceQueryBuilder,
    score: str,
    depth: int,
    where: str,
    more: list[str] | None = None,
) -> pa.Table:
    """The first `depth` rows of a query, its column `score` as "score"; and `more` columns."""
    columns = [*seen(table), *(more or [])]
    if where:
        query = query.where(where)
    rows = query.limit(depth).select([*columns, score]).to_arrow()
    return rows.rename_columns([*columns, "score"])


def seen(table: Table) -> list[str]:
    """The columns that a finder shows."""
    return [name for name in table.schema.names if name not in UNSEEN]


def _scan(
    table: Table, vector: Float32[np.ndarray, " D"], depth: int, where: str
) -> tuple[UInt64[np.ndarray, " N"], Float32[np.ndarray, " N"]]:
    """Row ids and cosines of the nearest `depth` passages, the nearest first."""
    query = table.search().select(["vector"]).with_row_id(True).limit(None)
    if where:
        query = query.where(where)
    ids, scores = np.empty(0, np.uint64), np.empty(0, np.float32)
    for batch in query.to_batches():
        ids = np.concatenate([ids, batch["_rowid"].to_numpy()])
        scores = np.concatenate([scores, find_cosines(batch["vector"], vector)])
        # Only the best are kept, so memory does not grow with the index.
        best = np.argsort(-scores, kind="stable")[:depth]
        ids, scores = ids[best], scores[best]
    return ids, scores


def _take(table: Table, ids: UInt64[np.ndarray, " N"]) -> pa.Table:
    """The rows of these ids, in this order, which LanceDB does not keep."""
    query = table.take_row_ids(ids.tolist()).select(seen(table)).with_row_id()
    rows = query.to_arrow()
    places = np.argsort(rows["_rowid"].to_numpy())
    order = places[np.searchsorted(rows["_rowid"].to_numpy(), ids, sorter=places)]
    return rows.take(order).drop_columns(["_rowid"])


def find_cosines(
    column: pa.FixedSizeListArray, vector: Float32[np.ndarray, " D"]
) -> Float32[np.ndarray, " N"]:
    """Of each row of a `vector` column with a vector of length 1."""
    numbers = unpack_vectors(column)
    return numbers @ vector / np.linalg.norm(numbers, axis=1)


def _by_distance(table: Table, vector: np.ndarray, column: str) -> LanceVectorQueryBuilder:
    query = table.search(vector, vector_column_name=column)
    assert isinstance(query, LanceVectorQueryBuilder)
    return query


def _fixed(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
