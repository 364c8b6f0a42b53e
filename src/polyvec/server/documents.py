"""Late chunking for the API: one vector per chunk, computed in the context of the whole document.

Axes in this file: D the model's width.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from polyvec.late_chunking import (
    DEFAULT_OVERLAP_TOKENS,
    ChunkChoice,
    Semantic,
    cut_at_changes,
    cut_document,
    fill_empty_spans,
    find_surroundings,
    find_token_spans,
    join_chunks,
)
from polyvec.pooling import Window, plan_windows
from polyvec.server.api_keys import ApiKey
from polyvec.server.errors import invalid_input
from polyvec.server.fair_queue import EngineText, TrafficClass
from polyvec.server.model import Encoded, ServedModel
from polyvec.server.serialise import truncate_means
from polyvec.tasks import TaskChoice


async def encode_chunks(
    model: ServedModel,
    chunks: Sequence[str],
    choice: TaskChoice,
    api_key: ApiKey,
    *,
    truncate: bool = False,
    traffic: TrafficClass = TrafficClass.INTERACTIVE,
) -> Encoded:
    """The mean hidden state of each chunk of a document that its client has cut.

    The document is the chunks joined by single spaces (docs/serving.md). A chunk beyond the model's
    longest text has no vector and is an error 400, with `truncate` too.
    """
    model.check_texts(chunks, "input")
    joined, offsets = join_chunks(chunks)
    [document] = await model.tokenise([joined], choice, truncate=True)
    limit = model.config.max_tokens
    if document.truncated and not truncate:
        raise invalid_input(
            f"the chunks have more than {limit:,} tokens together; send fewer, or set "
            "late_chunking to false"
        )
    starts, ends = find_token_spans(document, joined, offsets)
    without_tokens = np.flatnonzero(ends <= starts)
    if len(without_tokens):
        raise invalid_input(
            f"input[{without_tokens[0]}] lies beyond the {limit:,} tokens that the model reads, or "
            "has no token of its own; send fewer chunks"
        )
    num_tokens = len(document.ids)
    api_key.charge(num_tokens)
    text = EngineText(document.ids, choice.adapter_id, starts, ends)
    [means] = await model.scheduler.run([text], traffic)
    return Encoded(means=means, num_tokens=num_tokens, num_truncated=int(document.truncated))


async def encode_document(
    model: ServedModel,
    text: str,
    choice: TaskChoice,
    chunks: ChunkChoice,
    api_key: ApiKey,
    *,
    traffic: TrafficClass = TrafficClass.INTERACTIVE,
) -> Encoded:
    """The mean hidden state of each chunk of one text of any length, which is cut as `chunks` says.

    The embeddings are those of `Encoder.encode_chunks`. A text that is longer than the model's
    longest text is encoded in windows. Raises ApiError 400 for a text or a number of chunks beyond
    the limits of a request, and for an impossible choice of chunks.
    """
    model.check_texts([text], "input")
    [tokens] = await model.tokenise_whole(
        [text], "input", prompt=choice.prompt, max_tokens=model.limits.request_tokens
    )
    num_read = 0
    try:
        if isinstance(chunks, Semantic):
            sentences, texts = await asyncio.to_thread(find_surroundings, text, chunks)
            _check_num_parts(model, "sentences", len(sentences))
            near = await model.encode(
                texts, choice, ["dense"], api_key, truncate=True, traffic=traffic
            )
            vectors = truncate_means(near.dense, model.config.width)
            offsets = cut_at_changes(text, sentences, vectors, chunks)
            num_read = near.num_tokens
        else:
            offsets = await asyncio.to_thread(cut_document, text, tokens, chunks, _embed_none)
    except ValueError as error:
        raise invalid_input(str(error), "chunking") from None
    _check_num_parts(model, "chunks", len(offsets))

    def plan() -> list[Window]:
        spans = fill_empty_spans(tokens, find_token_spans(tokens, text, offsets))
        size = model.config.max_tokens
        overlap = min(DEFAULT_OVERLAP_TOKENS, size // 2)
        windows = plan_windows(len(tokens.ids), *spans, window=size, overlap=overlap)
        # A window without a chunk has nothing to add.
        return [window for window in windows if len(window.spans)]

    windows = await asyncio.to_thread(plan)
    parts = [
        EngineText(tokens.ids[one.start : one.end], choice.adapter_id, one.starts, one.ends)
        for one in windows
    ]
    num_tokens = sum(len(part.ids) for part in parts)
    api_key.charge(num_tokens)
    means = np.zeros((len(offsets), model.config.width), np.float32)
    for window, vectors in zip(windows, await model.scheduler.run(parts, traffic), strict=True):
        window.add_to(means, vectors)
    return Encoded(means=means, offsets=offsets, num_tokens=num_read + num_tokens)


def _check_num_parts(model: ServedModel, name: str, count: int) -> None:
    limit = model.limits.items
    if not 0 < count <= limit:
        raise invalid_input(
            f"the text has {count:,} {name}, and a request may have 1 to {limit:,}; choose larger "
            "chunks, or send the text in parts",
            "chunking",
        )


def _embed_none(texts: list[str]) -> Float32[np.ndarray, "N D"]:
    raise AssertionError("only Semantic embeds texts, and it is cut elsewhere")
