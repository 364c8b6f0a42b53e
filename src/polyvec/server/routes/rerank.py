"""POST /v1/rerank: documents by their cosine with a query.

Axes in this file: N documents, D the model's width.
"""

import asyncio
from typing import Any

import numpy as np
from jaxtyping import Float32
from starlette.responses import Response

from polyvec import outputs
from polyvec.server.app import Call, Endpoint, json_response
from polyvec.server.model import Served
from polyvec.server.quotas import Client
from polyvec.server.requests import RerankRequest


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


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/rerank",
        answer=rerank,
        summary="Documents by their relevance to a query",
        reads=RerankRequest,
    ),
]
