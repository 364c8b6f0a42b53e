"""POST /v1/rerank, for the clients of Jina, Cohere, SiliconFlow and Voyage, and /v2/rerank.

The hosted services share the path and most fields. One handler therefore reads the fields of all,
and its answer has the fields of all. These services ignore fields that they do not have.
"""

import uuid
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from starlette.responses import Response

from polyvec.server.errors import COHERE_ERROR_FORM
from polyvec.server.service import Endpoint, RequestContext, json_response
from polyvec.server.wire import ItemCount, TolerantModel

DEFAULT_RANK_FIELDS = ("text",)

Document = str | dict[str, Any]


def parse_documents(value: Any) -> list[Document]:
    """The list of documents that a document or a list of documents stands for."""
    documents = [value] if isinstance(value, str | dict) else value
    if not isinstance(documents, list) or not documents:
        raise ValueError("must be a list of documents, at least one")
    for number, document in enumerate(documents):
        if not isinstance(document, str | dict):
            raise ValueError(f"item {number} must be a text, or an object with a text")
    return documents


DOCUMENT_SCHEMA = {"anyOf": [{"type": "string", "pattern": "\\S"}, {"type": "object"}]}
Documents = Annotated[
    list[Document],
    PlainValidator(parse_documents),
    WithJsonSchema({"type": "array", "items": DOCUMENT_SCHEMA, "minItems": 1}),
]


class RerankRequest(TolerantModel):
    """A query, and the documents to sort."""

    model: str | None = None
    """Name of the model; by default the first model of the server."""
    query: str
    documents: Documents
    """Texts, or objects whose field "text" is the text."""
    rank_fields: Annotated[list[str], Field(min_length=1)] | None = None
    """The fields of an object that are its text, in this order; by default only "text"."""
    top_n: ItemCount | None = None
    """Number of documents to return; by default all."""
    top_k: ItemCount | None = None
    """Voyage's name for `top_n`."""
    return_documents: bool | None = None
    """Include the documents in the answer. The default is true in version 1, false in version 2."""
    truncation: bool | None = True
    """Truncate documents that are too long; otherwise they are an error."""
    max_chunks_per_doc: int | None = None
    """A field without effect: a document is read whole, up to the model's longest text."""
    max_tokens_per_doc: int | None = None
    """A field without effect: a document is read whole, up to the model's longest text."""
    overlap_tokens: int | None = None
    """A field without effect: a document is read whole, up to the model's longest text."""

    @model_validator(mode="after")
    def _check_documents(self) -> "RerankRequest":
        if self.top_n is not None and self.top_k is not None and self.top_n != self.top_k:
            raise ValueError("top_n and top_k differ")
        for number, document in enumerate(self.documents):
            if isinstance(document, dict):
                for name in self.rank_fields or DEFAULT_RANK_FIELDS:
                    if not isinstance(document.get(name), str):
                        raise ValueError(f"documents[{number}] has no text in the field {name!r}")
        return self

    @property
    def texts(self) -> list[str]:
        """The text of each document. Several fields of an object are lines with their names."""
        return [
            document if isinstance(document, str) else self._join_fields(document)
            for document in self.documents
        ]

    def _join_fields(self, document: dict[str, Any]) -> str:
        names = self.rank_fields or DEFAULT_RANK_FIELDS
        if len(names) == 1:
            return document[names[0]]
        return "\n".join(f"{name}: {document[name]}" for name in names)


async def rerank(context: RequestContext) -> Response:
    """POST /v1/rerank."""
    return await _rerank(context, version="1", return_documents=True)


async def rerank_v2(context: RequestContext) -> Response:
    """POST /v2/rerank."""
    return await _rerank(context, version="2", return_documents=False)


async def _rerank(context: RequestContext, *, version: str, return_documents: bool) -> Response:
    request: RerankRequest = context.body
    model = context.service.choose_model(request.model)
    texts = request.texts
    ranked, num_tokens = await model.rerank(
        request.query,
        texts,
        context.api_key,
        truncate=request.truncation is not False,
        param="documents",
    )
    context.record_usage(texts=len(ranked) + 1, tokens=num_tokens)
    results: list[dict[str, Any]] = [
        {"index": one.index, "relevance_score": one.score}
        for one in ranked[: request.top_n or request.top_k]
    ]
    if request.return_documents is not None:
        return_documents = request.return_documents
    if return_documents:
        for result in results:
            document = request.documents[result["index"]]
            result["document"] = document if isinstance(document, dict) else {"text": document}
    return json_response(
        {
            "object": "list",
            "id": str(uuid.uuid4()),
            "model": request.model or model.name,
            "results": results,
            "usage": {"total_tokens": num_tokens},
            "meta": {
                "api_version": {"version": version},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": num_tokens, "output_tokens": 0},
            },
        }
    )


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/rerank",
        answer=rerank,
        summary="Sort documents by their relevance to a query",
        reads=RerankRequest,
    ),
    Endpoint(
        method="POST",
        path="/v2/rerank",
        answer=rerank_v2,
        summary="Cohere: sort documents by their relevance to a query",
        reads=RerankRequest,
        error_form=COHERE_ERROR_FORM,
    ),
]
