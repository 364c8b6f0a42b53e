"""POST /v1/rerank, /v1/segment and GET /v1/models: what embeddings give besides themselves.

Axes in this file: N documents, D the model's width.
"""

import asyncio
from typing import Any

import numpy as np
from jaxtyping import Float32
from starlette.responses import Response

from polyvec import outputs
from polyvec.chunking import split_text
from polyvec.server.app import Call, Endpoint, json_response
from polyvec.server.errors import ApiError
from polyvec.server.limits import Client
from polyvec.server.requests import RerankRequest, SegmentRequest
from polyvec.server.served import Served


async def score(
    model: Served, query: str, documents: list[str], client: Client, *, truncate: bool, param: str
) -> tuple[Float32[np.ndarray, " N"], int]:
    """Each document's cosine with the query, both under their retrieval adapters; and tokens."""
    names = {task.name for task in model.config.tasks}
    tasks = [task if task in names else None for task in ("retrieval.query", "retrieval.passage")]
    # Both at once: the scheduler puts them into one batch.
    (asked, few), (found, many) = await asyncio.gather(
        model.embed([query], tasks[0], client, truncate=truncate, param="query"),
        model.embed(documents, tasks[1], client, truncate=truncate, param=param),
    )
    scores = await asyncio.to_thread(outputs.similarity, found, asked)
    return scores[:, 0], few + many


async def rerank(call: Call) -> Response:
    """POST /v1/rerank."""
    request: RerankRequest = call.body
    model = call.service.find(request.model)
    scores, tokens = await score(
        model,
        request.query,
        request.documents,
        call.client,
        truncate=request.truncation is not False,
        param="documents",
    )
    call.note(texts=len(scores) + 1, tokens=tokens)
    best = np.argsort(-scores, kind="stable")[: request.top_n].tolist()
    results: list[dict[str, Any]] = [
        {"index": i, "relevance_score": float(scores[i])} for i in best
    ]
    if request.return_documents is not False:
        for result in results:
            result["document"] = {"text": request.documents[result["index"]]}
    usage = {"total_tokens": tokens}
    return json_response(
        {"object": "list", "model": request.model, "results": results, "usage": usage}
    )


async def segment(call: Call) -> Response:
    """POST /v1/segment: tokens counted, and the text cut into chunks at sentences."""
    request: SegmentRequest = call.body
    name = request.tokenizer
    model = call.service.served[0] if name is None else call.service.find(name)
    answer = await asyncio.to_thread(_segment, request, model)
    call.client.charge(answer["num_tokens"])
    call.note(texts=1, tokens=answer["num_tokens"])
    return json_response(answer)


def _segment(request: SegmentRequest, model: Served) -> dict[str, Any]:
    text = request.content
    encoding = model.tokenizer.core.encode(text, add_special_tokens=False)
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
    answer: dict[str, Any] = {
        "num_tokens": len(ids),
        "tokenizer": model.name,
        "usage": {"tokens": num_tokens},
    }
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
        begins = [0, *cuts[:-1]]
        answer["tokens"] = [pairs[a:b] for a, b in zip(begins, cuts, strict=True)]
    return answer


def describe(name: str, model: Served) -> dict[str, Any]:
    """A model as both families list it: OpenAI's `object` and `owned_by`, the rest Jina's."""
    free = dict.fromkeys(
        ("prompt", "completion", "image", "request", "input_cache_read", "input_cache_write"), "0"
    )
    return {
        "id": name,
        "object": "model",
        "owned_by": "polyvec",
        "created": model.created,
        "name": model.name,
        "description": "tasks: " + ", ".join(task.name for task in model.config.tasks),
        "hugging_face_id": "",
        "input_modalities": ["text"],
        "output_modalities": ["embeddings"],
        "context_length": model.config.max_tokens,
        "max_output_length": model.config.width,
        "dims": list(model.config.dims),
        "tasks": [task.name for task in model.config.tasks],
        "pricing": free,
        "quantization": "",
        "supported_features": [],
        "supported_sampling_parameters": [],
        "datacenters": [],
    }


async def list_models(call: Call) -> Response:
    """GET /v1/models."""
    models = [describe(name, model) for name, model in call.service.models.items()]
    return json_response({"object": "list", "data": models})


async def show_model(call: Call) -> Response:
    """GET /v1/models/{name}."""
    name = call.path["model_id"]
    try:
        return json_response(describe(name, call.service.find(name)))
    except ApiError:
        raise ApiError(
            404, "RESOURCE_NOT_FOUND", f"model '{name[:80]}' not found or access denied"
        ) from None


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/rerank",
        answer=rerank,
        summary="Documents by their relevance to a query",
        reads=RerankRequest,
    ),
    Endpoint(
        method="POST",
        path="/v1/segment",
        answer=segment,
        summary="A text's tokens and chunks",
        reads=SegmentRequest,
    ),
    Endpoint(method="GET", path="/v1/models", answer=list_models, summary="The models' names"),
    Endpoint(
        method="GET", path="/v1/models/{model_id:path}", answer=show_model, summary="One model"
    ),
]
