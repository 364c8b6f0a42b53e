"""POST /v1/segment: count the tokens of a text, and split it into chunks at sentence ends."""

import asyncio
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator
from starlette.responses import Response

from polyvec.chunking import split_text
from polyvec.server.service import Endpoint, RequestContext, json_response
from polyvec.server.wire import MAX_TOKENISE_CHARACTERS, ItemCount, StrictModel
from polyvec.tokenizer import Tokenizer


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
        return self


async def segment(context: RequestContext) -> Response:
    """POST /v1/segment."""
    request: SegmentRequest = context.body
    model = context.service.choose_model(request.tokenizer)
    answer = await asyncio.to_thread(segment_text, request, model.tokenizer)
    answer["tokenizer"] = model.name
    context.api_key.charge(answer["num_tokens"])
    context.record_usage(texts=1, tokens=answer["num_tokens"])
    return json_response(answer)


def segment_text(request: SegmentRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of the answer, without the name of the tokenizer."""
    text = request.content
    encoding = tokenizer.core.encode(text, add_special_tokens=False)
    ids, offsets = encoding.ids, encoding.offsets
    num_tokens = len(ids)
    if num_tokens and request.head is not None:
        ids, offsets = ids[: request.head], offsets[: request.head]
        text = text[: offsets[-1][1]]
    if num_tokens and request.tail is not None:
        ids, offsets = ids[-request.tail :], offsets[-request.tail :]
        start = offsets[0][0]
        text = text[start:]
        offsets = [(a - start, b - start) for a, b in offsets]
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
        ends = np.maximum.accumulate([end for _, end in offsets]) if offsets else np.empty(0)
        cuts = np.searchsorted(ends, [chunk.end for chunk in chunks], side="right").tolist()
        pairs = [[text[a:b], [i]] for i, (a, b) in zip(ids, offsets, strict=True)]
        answer["tokens"] = [pairs[a:b] for a, b in pairwise([0, *cuts])]
    return answer


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/segment",
        answer=segment,
        summary="Count the tokens of a text, and split it into chunks",
        reads=SegmentRequest,
    ),
]
