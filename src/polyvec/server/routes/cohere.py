"""POST /v2/embed, for the clients of Cohere."""

import uuid
from typing import Annotated, Literal

from pydantic import Field
from starlette.responses import Response

from polyvec.server.errors import AnyError, ErrorForm
from polyvec.server.serialise import ENCODINGS, pack_bits, to_json, truncate_means
from polyvec.server.service import Endpoint, RequestContext
from polyvec.server.wire import CohereEncoding, Dimensions, StrictModel, Texts
from polyvec.tasks import CLASSIFICATION, PASSAGE, QUERY, SEPARATION

TASKS = {
    "search_document": PASSAGE,
    "search_query": QUERY,
    "classification": CLASSIFICATION,
    "clustering": SEPARATION,
}
"""The task for each `input_type`."""


class CohereErrorResponse(AnyError):
    """An error as Cohere's clients read it."""

    message: str
    id: str


ERROR_FORM = ErrorForm(
    CohereErrorResponse,
    lambda error, request_id: {"message": error.message, "id": request_id},
)


class CohereRequest(StrictModel):
    """Texts to embed."""

    model: str
    texts: Texts
    input_type: Literal["search_document", "search_query", "classification", "clustering"]
    """Chooses the task."""
    embedding_types: Annotated[list[CohereEncoding], Field(min_length=1)] | None = None
    """Encodings of the vectors; by default only float."""
    output_dimension: Dimensions | None = None
    """Size of the vectors, at most the model's width."""
    truncate: Literal["NONE", "END"] = "END"
    """Whether texts that are too long are truncated ("END") or are an error ("NONE")."""


async def cohere_embed(context: RequestContext) -> Response:
    """POST /v2/embed."""
    request: CohereRequest = context.body
    model = context.service.choose_model(request.model)
    choice = model.choose_task(TASKS[request.input_type])
    names = request.embedding_types or ["float"]
    dim = model.check_dim(
        request.output_dimension, packs_bits=pack_bits(names), param="output_dimension"
    )
    encoded = await model.encode(
        request.texts,
        choice,
        ["dense"],
        context.api_key,
        truncate=request.truncate == "END",
        param="texts",
    )
    num_tokens = encoded.num_tokens
    context.record_usage(texts=len(encoded), tokens=num_tokens)

    def write() -> bytes:
        vectors = truncate_means(encoded.dense, dim)
        return to_json(
            {
                "id": str(uuid.uuid4()),
                "embeddings": {name: ENCODINGS[name].apply(vectors) for name in names},
                "texts": request.texts,
                "meta": {
                    "api_version": {"version": "2"},
                    "billed_units": {"input_tokens": num_tokens},
                },
                "response_type": "embeddings_by_type",
            }
        )

    body = await context.serialise(write, len(encoded) * dim)
    return Response(body, media_type="application/json")


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v2/embed",
        answer=cohere_embed,
        summary="Cohere: embed texts, in one or more encodings",
        reads=CohereRequest,
        error_form=ERROR_FORM,
    ),
]
