"""POST /v1/rerank, for the clients of Jina."""

from typing import Any

from starlette.responses import Response

from polyvec.server.service import Endpoint, RequestContext, json_response
from polyvec.server.wire import ItemCount, StrictModel, Texts


class RerankRequest(StrictModel):
    """A query, and the documents to sort."""

    model: str
    query: str
    documents: Texts
    top_n: ItemCount | None = None
    """Number of documents to return; by default all."""
    return_documents: bool | None = True
    """Include the texts of the documents in the answer."""
    truncation: bool | None = True
    """Truncate documents that are too long; otherwise they are an error."""


async def rerank(context: RequestContext) -> Response:
    """POST /v1/rerank."""
    request: RerankRequest = context.body
    model = context.service.choose_model(request.model)
    ranked, num_tokens = await model.rerank(
        request.query,
        request.documents,
        context.api_key,
        truncate=request.truncation is not False,
        param="documents",
    )
    context.record_usage(texts=len(ranked) + 1, tokens=num_tokens)
    results: list[dict[str, Any]] = [
        {"index": one.index, "relevance_score": one.score} for one in ranked[: request.top_n]
    ]
    if request.return_documents is not False:
        for result in results:
            result["document"] = {"text": request.documents[result["index"]]}
    usage = {"total_tokens": num_tokens}
    return json_response(
        {"object": "list", "model": request.model, "results": results, "usage": usage}
    )


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/rerank",
        answer=rerank,
        summary="Sort documents by their relevance to a query",
        reads=RerankRequest,
    ),
]
