"""Vectors to bytes of JSON. Numbers are written with as many digits as bring back their bits.

Axes in this file: N texts, D the model's width, dim the size asked for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float32

from polyvec import outputs
from polyvec.server.scheduler import not_finite
from polyvec.server.wire import Encoding


def shape(
    means: Float32[np.ndarray, "N D"], dim: int, *, normalized: bool
) -> Float32[np.ndarray, "N dim"]:
    """Mean hidden states cut to `dim` numbers, and scaled to length 1 unless told otherwise.

    Raises ApiError 500 naming a row that has no direction.
    """
    if not normalized:
        return np.ascontiguousarray(means[:, :dim])
    try:
        return outputs.truncate_and_normalise(means, dim)
    except outputs.NotFiniteError as error:
        raise not_finite(error.rows[0]) from None


def encode(vectors: Float32[np.ndarray, "N dim"], encoding: Encoding) -> Sequence[Any]:
    """Each vector in an encoding: an array, or a base64 string."""
    if encoding == "base64":
        return outputs.to_base64(vectors)
    if encoding == "binary":
        return list(outputs.to_binary(vectors))
    if encoding == "ubinary":
        return list(outputs.to_ubinary(vectors))
    return list(vectors)


def embedding_rows(
    vectors: Float32[np.ndarray, "N dim"], encodings: Sequence[Encoding], *, first_index: int
) -> list[bytes]:
    """Some objects of `data`, one a text."""
    columns = [encode(vectors, encoding) for encoding in encodings]
    rows = []
    for index, values in enumerate(zip(*columns, strict=True), first_index):
        row = {"object": "embedding", "index": index, "embedding": values[0]}
        if len(encodings) > 1:
            row["embedding_types"] = dict(zip(encodings, values, strict=True))
        rows.append(dump(row))
    return rows


def token_rows(texts: Sequence[Float32[np.ndarray, "_ dim"]], encoding: Encoding) -> list[bytes]:
    """The objects of `data` where every token has a vector."""
    return [
        dump(
            {"object": "embeddings", "index": index, "embeddings": list(encode(vectors, encoding))}
        )
        for index, vectors in enumerate(texts)
    ]


def sparse_rows(texts: Sequence[dict[str, float]]) -> list[bytes]:
    """The objects of `data` where pieces of the vocabulary have weights."""
    return [
        dump({"object": "embedding", "index": index, "embedding": weights})
        for index, weights in enumerate(texts)
    ]


def embedding_body(model: str, rows: list[bytes], num_tokens: int) -> bytes:
    """The whole answer."""
    usage = dump({"total_tokens": num_tokens, "prompt_tokens": num_tokens})
    return b'{"object":"list","model":%b,"data":[%b],"usage":%b}' % (
        dump(model),
        b",".join(rows),
        usage,
    )


def dump(value: Any) -> bytes:
    """JSON; arrays of numbers are lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
