"""The forms in which an index stores its vectors, and the search for the nearest of them.

`float`   float32 numbers, which LanceDB compares exactly.
`int8`    one byte per number. LanceDB compares int8 vectors only with int8 questions. Here they are
          read in batches and compared with the question's float32 vector, which is more accurate.
`binary`  one bit per number, beside the int8 vector. LanceDB retrieves several times as many
          passages as are needed by their bits (Hamming distance), and these are scored as in
          `int8`.

Every form gives cosines as scores. The question is rounded only to compare bits.

Axes in this file: N passages, D numbers in a vector.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8, UInt64
from lancedb.query import LanceQueryBuilder, LanceVectorQueryBuilder
from lancedb.table import Table

from polyvec.heads import Sparse
from polyvec.outputs import to_int8, to_ubinary

Quantise = Literal["float", "int8", "binary"]

FORMS: tuple[Quantise, ...] = ("float", "int8", "binary")
"""All forms. A search compares 32, 8 and 1 bits per number."""

OVERSAMPLING = 4
"""Passages that `binary` retrieves by their bits, per passage that is needed."""

INTERNAL_COLUMNS = {
    *("digest", "modified", "content", "words"),
    *("vector", "bits", "tokens", "weights", "token_bits"),
}
"""Columns that are part of a search's rows only where they are needed."""

SIGNS_FACTOR = math.sqrt(math.pi / 2)
"""A cosine with the signs of a vector, times this, estimates the cosine with the vector itself: the
numbers of a vector in many dimensions are nearly normal."""

TOKEN_BITS = pa.large_binary()
"""The type of the column of token vectors: the bits of a text one after the other."""

Row = Mapping[str, Any]
"""A passage's row of the table, and under "score" the score of the component that retrieved it."""


def vector_types(quantise: Quantise, dim: int) -> dict[str, pa.DataType]:
    """The names and types of the table's columns for vectors.

    Raises ValueError for an unknown form, and for `binary` if `dim` is not a multiple of 8.
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
    """The columns of `vector_types`, one row per vector."""
    if quantise == "float":
        return {"vector": _fixed(vectors)}
    columns = {"vector": _fixed(to_int8(vectors))}
    return columns if quantise == "int8" else columns | {"bits": _fixed(to_ubinary(vectors))}


def pack_sparse(sparse: Sparse) -> dict[str, pa.Array]:
    """The columns for sparse weights, one row per text: token ids and the weight of each."""
    ends = pa.array(sparse.indptr.astype(np.int32))
    return {
        "tokens": pa.ListArray.from_arrays(ends, pa.array(sparse.indices)),
        "weights": pa.ListArray.from_arrays(ends, pa.array(sparse.data)),
    }


def sign_vectors(
    vectors: Float32[np.ndarray, "T V"] | UInt8[np.ndarray, "T V"],
) -> Float32[np.ndarray, "T V"]:
    """The signs of vectors, as vectors of length 1. The index stores them as bits."""
    return np.where(vectors > 0, 1, -1).astype(np.float32) / np.float32(math.sqrt(vectors.shape[1]))


def pack_token_bits(vectors: Sequence[Float32[np.ndarray, "_T V"]]) -> dict[str, pa.Array]:
    """The column for token vectors, one row per text: the sign of each number, as one bit.

    The bits take a thirty-second of the vectors, and MaxSim with them ranks almost as well.
    """
    bits = [np.packbits(text > 0, axis=1).tobytes() for text in vectors]
    return {"token_bits": pa.array(bits, TOKEN_BITS)}


def unpack_token_bits(texts: Sequence[bytes], size: int) -> list[Float32[np.ndarray, "_T V"]]:
    """The signs of each text as vectors of length 1 with `size` numbers. There must be a text."""
    num_bytes = -(-size // 8)
    bits = np.frombuffer(b"".join(texts), np.uint8).reshape(-1, num_bytes)
    ends = np.cumsum([len(text) // num_bytes for text in texts])
    return np.split(sign_vectors(np.unpackbits(bits, axis=1, count=size)), ends[:-1])


def unpack_vectors(column: pa.FixedSizeListArray) -> Float32[np.ndarray, "N D"]:
    """The numbers of a `vector` column as float32; int8 numbers are not scaled back."""
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, column.type.list_size).astype(np.float32, copy=False)


def find_nearest(
    table: Table,
    vector: Float32[np.ndarray, " D"],
    *,
    quantise: Quantise,
    depth: int,
    where: str,
    internal: Sequence[str] = (),
    oversampling: int = OVERSAMPLING,
) -> list[Row]:
    """The `depth` rows with the highest cosines with a vector of length 1, the highest first.

    `where` is an SQL condition, or "". `internal` names the columns of `INTERNAL_COLUMNS` that the
    rows shall have. With `binary`, only the `depth * oversampling` rows with the nearest bits are
    compared.
    """
    if quantise == "float":
        query = _by_distance(table, vector, "vector").distance_type("dot")
        rows = run_query(table, query, "_distance", depth, where, internal)
        # LanceDB's dot distance is 1 - dot.
        return [{**row, "score": 1 - row["score"]} for row in rows.to_pylist()]
    if quantise == "int8":
        ids, scores = _scan(table, vector, depth, where)
        rows = take_rows(table, ids, [*row_columns(table), *internal])
    else:
        query = _by_distance(table, to_ubinary(vector[None])[0], "bits")
        query = query.distance_type("hamming")  # pyright: ignore[reportArgumentType]
        needed = ["vector", *internal]
        rows = run_query(table, query, "_distance", depth * oversampling, where, needed)
        scores = find_cosines(rows["vector"].combine_chunks(), vector)
        best = np.argsort(-scores, kind="stable")[:depth]
        rows, scores = rows.take(best).drop_columns(["vector", "score"]), scores[best]
    return rows.append_column("score", pa.array(scores)).to_pylist()


def run_query(
    table: Table,
    query: LanceQueryBuilder,
    score: str,
    depth: int,
    where: str,
    internal: Sequence[str] = (),
) -> pa.Table:
    """The first `depth` rows of a query, with its column `score` renamed to "score".

    `internal` names the columns of `INTERNAL_COLUMNS` that are needed as well.
    """
    columns = [*row_columns(table), *internal]
    if where:
        query = query.where(where)
    rows = query.limit(depth).select([*columns, score]).to_arrow()
    return rows.rename_columns([*columns, "score"])


def row_columns(table: Table) -> list[str]:
    """The columns of a search's rows."""
    return [name for name in table.schema.names if name not in INTERNAL_COLUMNS]


def _scan(
    table: Table, vector: Float32[np.ndarray, " D"], depth: int, where: str
) -> tuple[UInt64[np.ndarray, " N"], Float32[np.ndarray, " N"]]:
    """The row ids and the cosines of the `depth` nearest passages, the nearest first."""
    query = table.search().select(["vector"]).with_row_id(True).limit(None)
    if where:
        query = query.where(where)
    ids, scores = np.empty(0, np.uint64), np.empty(0, np.float32)
    for batch in query.to_batches():
        ids = np.concatenate([ids, batch["_rowid"].to_numpy()])
        scores = np.concatenate([scores, find_cosines(batch["vector"], vector)])
        # Only the best are kept, so that memory does not grow with the index.
        best = np.argsort(-scores, kind="stable")[:depth]
        ids, scores = ids[best], scores[best]
    return ids, scores


def take_rows(table: Table, ids: UInt64[np.ndarray, " N"], columns: Sequence[str]) -> pa.Table:
    """The rows with these ids, in this order, which LanceDB does not keep."""
    unique, places = np.unique(ids, return_inverse=True)
    rows = table.take_row_ids(unique.tolist()).select([*columns]).with_row_id().to_arrow()
    order = np.argsort(rows["_rowid"].to_numpy())[places]
    return rows.take(order).drop_columns(["_rowid"])


def find_cosines(
    column: pa.FixedSizeListArray, vector: Float32[np.ndarray, " D"]
) -> Float32[np.ndarray, " N"]:
    """The cosine of each row of a `vector` column with a vector of length 1."""
    numbers = unpack_vectors(column)
    return numbers @ vector / np.linalg.norm(numbers, axis=1)


def _by_distance(table: Table, vector: np.ndarray, column: str) -> LanceVectorQueryBuilder:
    query = table.search(vector, vector_column_name=column)
    assert isinstance(query, LanceVectorQueryBuilder)
    return query


def _fixed(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
