"""POST /v1/segment: tokens counted, and a text cut into chunks at its sentences."""

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
from starlette.responses import Response

from polyvec.chunking import split_text
from polyvec.server.app import Call, Endpoint, json_response
from polyvec.server.requests import SegmentRequest
from polyvec.tokenizer import Tokenizer


async def segment(call: Call) -> Response:
    """POST /v1/segment: tokens counted, and the text cut into chunks at sentences."""
    request: SegmentRequest = call.body
    name = request.tokenizer
    model = call.service.served[0] if name is None else call.service.find(name)
    answer = await asyncio.to_thread(segment_text, request, model.tokenizer)
    answer["tokenizer"] = model.name
    call.client.charge(answer["num_tokens"])
    call.note(texts=1, tokens=answer["num_tokens"])
    return json_response(answer)


def segment_text(request: SegmentRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """The answer's fields, without the tokenizer's name."""
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
        summary="A text's tokens and chunks",
        reads=SegmentRequest,
    ),
]
