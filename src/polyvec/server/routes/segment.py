"""POST /v1/segment: count the tokens of a text, and split it into chunks at sentence ends."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator
from starlette.responses import Response

from polyvec.chunking import split_text
from polyvec.server.serialise import join_slices, nested_slices, object_slices, to_json
from polyvec.server.service import Endpoint, RequestContext, SlicedResponse
from polyvec.server.wire import MAX_TOKENISE_CHARACTERS, ItemCount, StrictModel
from polyvec.tokenizer import Tokens

MAX_CHUNKS = 50_000
"""Maximum number of chunks of the maximum length into which a text is split."""


class SegmentRequest(StrictModel):
    """A text to split."""

    content: Annotated[str, Field(max_length=MAX_TOKENISE_CHARACTERS)]
    tokenizer: str | None = None
    """Name of the model whose tokenizer to use; by default the first model."""
    return_tokens: bool = False
    return_chunks: bool = False
    max_chunk_length: Annotated[int, Field(ge=1, le=64_000)] = 1_000
    """Maximum length of a chunk, in characters."""
    head: ItemCount | None = None
    """Use only the first tokens, this many."""
    tail: ItemCount | None = None
    """Use only the last tokens, this many."""

    @model_validator(mode="after")
    def _check_ends(self) -> "SegmentRequest":
        if self.head is not None and self.tail is not None:
            raise ValueError("give head or tail, not both")
        is_split = self.return_chunks or self.return_tokens
        if is_split and len(self.content) > MAX_CHUNKS * self.max_chunk_length:
            raise ValueError(
                f"max_chunk_length is {self.max_chunk_length}, which cuts this content into more "
                f"than {MAX_CHUNKS:,} chunks; increase it, or send a shorter content"
            )
        return self


async def segment(context: RequestContext) -> Response:
    """POST /v1/segment."""
    request: SegmentRequest = context.body
    model = context.service.choose_model(request.tokenizer)
    [tokens] = await model.tokenise_whole([request.content], "content")
    num_tokens = len(tokens.ids) - 2

    def write() -> tuple[list[bytes], int]:
        answer = {**segment_text(request, tokens), "tokenizer": model.name}
        return join_slices(_answer_slices(answer)), answer["num_tokens"]

    slices, num_used = await context.serialise(write, max(num_tokens, len(request.content)))
    context.api_key.charge(num_used)
    context.record_usage(texts=1, tokens=num_used)
    return SlicedResponse(slices)


def segment_text(request: SegmentRequest, tokens: Tokens) -> dict[str, Any]:
    """The fields of the answer, without the name of the tokenizer.

    `tokens` are those of the whole text. The field "tokens" is an iterator over chunks, which
    yields iterators over tokens.
    """
    text = request.content
    ids, offsets = tokens.ids[1:-1], tokens.offsets[1:-1]
    num_tokens = len(ids)
    if num_tokens and request.head is not None:
        ids, offsets = ids[: request.head], offsets[: request.head]
        text = text[: offsets[-1, 1]]
    if num_tokens and request.tail is not None:
        ids, offsets = ids[-request.tail :], offsets[-request.tail :]
        text = text[offsets[0, 0] :]
        offsets = offsets - offsets[0, 0]
    answer: dict[str, Any] = {"num_tokens": len(ids), "usage": {"tokens": num_tokens}}
    if not (request.return_chunks or request.return_tokens):
        return answer
    chunks = split_text(text, request.max_chunk_length)
    if request.return_chunks:
        answer["num_chunks"] = len(chunks)
        answer["chunk_positions"] = [[chunk.start, chunk.end] for chunk in chunks]
        answer["chunks"] = [text[chunk.start : chunk.end] for chunk in chunks]
    if request.return_tokens:
        # A token belongs to the chunk in which it ends.
        ends = np.maximum.accumulate(offsets[:, 1]) if num_tokens else np.empty(0)
        cuts = np.searchsorted(ends, [chunk.end for chunk in chunks], side="right").tolist()
        answer["tokens"] = (
            (
                [text[a:b], [token_id]]
                for token_id, (a, b) in zip(
                    ids[first:end].tolist(), offsets[first:end].tolist(), strict=True
                )
            )
            for first, end in pairwise([0, *cuts])
        )
    return answer


def _answer_slices(answer: dict[str, Any]) -> Iterator[bytes]:
    """Yield the JSON of an answer, in slices."""
    for number, (name, value) in enumerate(answer.items()):
        yield b"," if number else b"{"
        yield to_json(name) + b":"
        if name == "tokens":
            yield from nested_slices(map(object_slices, value))
        elif isinstance(value, list):
            yield from object_slices(iter(value))
        else:
            yield to_json(value)
    yield b"}"


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/segment",
        answer=segment,
        summary="Count the tokens of a text, and split it into chunks",
        reads=SegmentRequest,
    ),
]
