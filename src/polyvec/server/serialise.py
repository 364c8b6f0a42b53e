"""Vectors to JSON. Numbers are written with enough digits to restore their bits.

`ENCODINGS` is the only table of output encodings: the wire types of all dialects and the OpenAPI
document are derived from it. To add an encoding, write its function in `polyvec.outputs` and add
a row here.

Axes in this file: N texts, D the model's width, dim the requested size.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float32

from polyvec import outputs
from polyvec.server.errors import not_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputEncoding:
    """A form in which an answer contains a vector."""

    apply: Callable[[Float32[np.ndarray, "N dim"]], Sequence[Any]]
    """Returns one array or string per vector."""

    packs_bits: bool = False
    """Whether eight numbers share a byte: the dim must then be a multiple of 8."""

    in_jina: bool = True
    """Whether Jina's API has it."""

    in_cohere: bool = True
    """Whether Cohere's API has it."""


ENCODINGS = {
    "float": OutputEncoding(apply=list),
    "base64": OutputEncoding(apply=outputs.to_base64),
    "int8": OutputEncoding(apply=lambda vectors: list(outputs.to_int8(vectors)), in_jina=False),
    "binary": OutputEncoding(
        apply=lambda vectors: list(outputs.to_binary(vectors)), packs_bits=True
    ),
    "ubinary": OutputEncoding(
        apply=lambda vectors: list(outputs.to_ubinary(vectors)), packs_bits=True
    ),
}

SLICE_NUMBERS = 65_536
"""Numbers that are serialised at once. Python's lock is held meanwhile."""

SLICE_OBJECTS = 1_024
"""Small objects that are serialised at once."""

SLICE_BYTES = 262_144
"""Bytes that a long answer sends at once, or a few more."""

JINA_ENCODINGS = tuple(name for name, encoding in ENCODINGS.items() if encoding.in_jina)
COHERE_ENCODINGS = tuple(name for name, encoding in ENCODINGS.items() if encoding.in_cohere)


def pack_bits(encodings: Collection[str]) -> bool:
    """Whether one of these encodings needs a dim that is a multiple of 8."""
    return any(ENCODINGS[name].packs_bits for name in encodings)


def truncate_means(
    means: Float32[np.ndarray, "N D"], dim: int, *, normalized: bool = True
) -> Float32[np.ndarray, "N dim"]:
    """Mean hidden states truncated to `dim`, and scaled to length 1 if `normalized`.

    Raises ApiError 500 that names a text whose embedding has no direction.
    """
    if not normalized:
        return np.ascontiguousarray(means[:, :dim])
    try:
        return outputs.truncate_and_normalise(means, dim)
    except outputs.NotFiniteError as error:
        raise not_finite(error.rows[0]) from None


def dense_objects(
    vectors: Float32[np.ndarray, "N dim"],
    encodings: Sequence[str],
    *,
    first_index: int,
    offsets: Sequence[tuple[int, int]] | None = None,
) -> list[bytes]:
    """The objects of `data` for dense embeddings, one per text; several encodings are allowed.

    `offsets` are the characters [start, end) of each chunk, if the texts are chunks of one.
    """
    columns = [ENCODINGS[name].apply(vectors) for name in encodings]
    objects = []
    for index, values in enumerate(zip(*columns, strict=True), first_index):
        item = {"object": "embedding", "index": index, "embedding": values[0]}
        if len(encodings) > 1:
            item["embedding_types"] = dict(zip(encodings, values, strict=True))
        if offsets is not None:
            item["start"], item["end"] = offsets[index - first_index]
        objects.append(to_json(item))
    return objects


def multi_vector_objects(
    texts: Sequence[Float32[np.ndarray, "_ dim"]], encoding: str
) -> list[bytes]:
    """The objects of `data` for multi-vector embeddings, which have one vector per token."""
    return [
        b'{"object":"embeddings","index":%d,"embeddings":%b}'
        % (index, b"".join(vector_slices(vectors, encoding)))
        for index, vectors in enumerate(texts)
    ]


def vector_slices(vectors: Float32[np.ndarray, "_ dim"], encoding: str) -> Iterator[bytes]:
    """Yield the JSON of a list of vectors, in slices."""
    apply = ENCODINGS[encoding].apply
    size = max(1, SLICE_NUMBERS // max(1, vectors.shape[1]))
    groups = (vectors[first : first + size] for first in range(0, len(vectors), size))
    return nested_slices((to_json(list(apply(group)))[1:-1],) for group in groups)


def object_slices(objects: Iterator[Any]) -> Iterator[bytes]:
    """Yield the JSON of a list of small objects, in slices."""
    groups = iter(lambda: list(islice(objects, SLICE_OBJECTS)), [])
    return nested_slices((to_json(group)[1:-1],) for group in groups)


def nested_slices(lists: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """Yield a list of lists in JSON, given the slices of each."""
    yield b"["
    for number, slices in enumerate(lists):
        if number:
            yield b","
        yield from slices
    yield b"]"


def join_slices(slices: Iterable[bytes]) -> list[bytes]:
    """The same bytes in fewer and larger slices."""
    joined: list[bytes] = []
    held: list[bytes] = []
    size = 0
    for part in slices:
        held.append(part)
        size += len(part)
        if size >= SLICE_BYTES:
            joined.append(b"".join(held))
            held, size = [], 0
    return [*joined, b"".join(held)]


def sparse_objects(texts: Sequence[dict[str, float]]) -> list[bytes]:
    """The objects of `data` for sparse embeddings, which are weights of tokens."""
    return [
        to_json({"object": "embedding", "index": index, "embedding": weights})
        for index, weights in enumerate(texts)
    ]


def embedding_body(
    model: str, objects: list[bytes], num_tokens: int, num_truncated: int = 0
) -> bytes:
    """The body of an answer, from the objects of `data`."""
    counts = {"total_tokens": num_tokens, "prompt_tokens": num_tokens}
    if num_truncated:
        counts["truncated_texts"] = num_truncated
    usage = to_json(counts)
    return b'{"object":"list","model":%b,"data":[%b],"usage":%b}' % (
        to_json(model),
        b",".join(objects),
        usage,
    )


def to_json(value: Any) -> bytes:
    """A value as JSON. Arrays become lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
