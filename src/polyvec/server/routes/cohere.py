"""POST /v1/embed and /v2/embed, for the clients of Cohere."""

import uuid
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from starlette.responses import Response

from polyvec.server.errors import COHERE_ERROR_FORM, invalid_input
from polyvec.server.serialise import ENCODINGS, pack_bits, to_json, truncate_means
from polyvec.server.service import Endpoint, RequestContext
from polyvec.server.wire import CohereEncoding, Dimensions, Texts, TolerantModel
from polyvec.tasks import CLASSIFICATION, PASSAGE, QUERY, SEPARATION

TASKS = {
    "search_document": PASSAGE,
    "search_query": QUERY,
    "classification": CLASSIFICATION,
    "clustering": SEPARATION,
}
"""The task for each `input_type`."""

InputType = Literal["search_document", "search_query", "classification", "clustering"]


class CohereContent(TolerantModel):
    """A part of an input."""

    type: Literal["text"]
    """The kind of the part. The models read no images."""
    text: str


class CohereInput(TolerantModel):
    """One input, whose parts are joined by line breaks."""

    content: Annotated[list[CohereContent], Field(min_length=1)]


class CohereEmbedRequest(TolerantModel):
    """Texts to embed, in `texts` or in `inputs`."""

    model: str
    texts: Texts | None = None
    inputs: Annotated[list[CohereInput], Field(min_length=1)] | None = None
    """Texts in the form that also allows images in Cohere's API."""
    images: list[Any] | None = None
    """Not supported: the models read no images."""
    input_type: InputType
    """Chooses the task."""
    embedding_types: Annotated[list[CohereEncoding], Field(min_length=1)] | None = None
    """Encodings of the vectors; by default only float."""
    output_dimension: Dimensions | None = None
    """Size of the vectors, at most the model's width."""
    truncate: Literal["NONE", "START", "END"] = "END"
    """Which side of a text that is too long is left out; with "NONE", such a text is an error."""

    @model_validator(mode="after")
    def _check_texts(self) -> "CohereEmbedRequest":
        if (self.texts is None) == (self.inputs is None):
            raise ValueError("send the texts in texts or in inputs")
        return self

    @property
    def all_texts(self) -> list[str]:
        """The texts of whichever field has them."""
        if self.texts is not None:
            return self.texts
        return ["\n".join(part.text for part in one.content) for one in self.inputs or []]


class CohereV1EmbedRequest(CohereEmbedRequest):
    """Texts to embed. Version 1 of the API has defaults for the model and the input type."""

    model: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name of the model; by default the first model of the server."""
    input_type: InputType | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Chooses the task; by default none."""


async def cohere_embed(context: RequestContext) -> Response:
    """POST /v2/embed: an object with one list of embeddings for each encoding."""
    return await _embed(context, version="2")


async def cohere_embed_v1(context: RequestContext) -> Response:
    """POST /v1/embed: as version 2 if encodings are named, and a plain list otherwise."""
    return await _embed(context, version="1")


async def _embed(context: RequestContext, version: str) -> Response:
    request: CohereEmbedRequest = context.body
    if request.images:
        raise invalid_input("images are not supported: the models read only texts", "images")
    model = context.service.choose_model(request.model)
    choice = model.choose_task(request.input_type and TASKS[request.input_type])
    names = request.embedding_types or ["float"]
    dim = model.check_dim(
        request.output_dimension, packs_bits=pack_bits(names), param="output_dimension"
    )
    texts = request.all_texts
    encoded = await model.encode(
        texts,
        choice,
        ["dense"],
        context.api_key,
        truncate=request.truncate != "NONE",
        truncation_side="left" if request.truncate == "START" else "right",
        param="texts" if request.inputs is None else "inputs",
    )
    num_tokens = encoded.num_tokens
    context.record_usage(texts=len(encoded), tokens=num_tokens)
    is_list = version == "1" and request.embedding_types is None

    def write() -> bytes:
        vectors = truncate_means(encoded.dense, dim)
        by_type = {name: ENCODINGS[name].apply(vectors) for name in names}
        return to_json(
            {
                "id": str(uuid.uuid4()),
                "embeddings": by_type["float"] if is_list else by_type,
                "texts": texts,
                "meta": {
                    "api_version": {"version": version},
                    "billed_units": {"input_tokens": num_tokens},
                },
                "response_type": "embeddings_floats" if is_list else "embeddings_by_type",
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
        reads=CohereEmbedRequest,
        error_form=COHERE_ERROR_FORM,
    ),
    Endpoint(
        method="POST",
        path="/v1/embed",
        answer=cohere_embed_v1,
        summary="Cohere, version 1: embed texts",
        reads=CohereV1EmbedRequest,
        error_form=COHERE_ERROR_FORM,
    ),
]
