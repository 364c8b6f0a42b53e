"""The routes of Text Embeddings Inference (TEI). They use the first model of the server."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import model_validator
from starlette.responses import Response

from polyvec.server.errors import AnyError, ErrorForm
from polyvec.server.model import HIDDEN, TOKENISE_THREADS, Encoded, ServedModel
from polyvec.server.serialise import (
    join_slices,
    nested_slices,
    object_slices,
    to_json,
    truncate_means,
    vector_slices,
)
from polyvec.server.service import Endpoint, RequestContext, SlicedResponse, json_response
from polyvec.server.wire import MAX_TOKENISE_CHARACTERS, Dimensions, StrictModel, Texts
from polyvec.tasks import TaskChoice
from polyvec.tokenizer import Tokenizer, Tokens


class TeiErrorResponse(AnyError):
    """An error as TEI's clients read it."""

    error: str
    error_type: str


ERROR_FORM = ErrorForm(
    TeiErrorResponse,
    lambda error, _: {"error": error.message, "error_type": error.openai_type},
)


class TeiRequest(StrictModel):
    """Texts to embed."""

    inputs: Texts
    truncate: bool | None = False
    """Truncate texts that are too long; otherwise they are an error."""
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt_name: str | None = None
    """Name of the task."""
    normalize: bool = True
    """Scale every vector to length 1."""
    dimensions: Dimensions | None = None
    """Size of the vectors, at most the model's width."""


class TeiRerankRequest(StrictModel):
    """A query, and the texts to sort."""

    query: str
    texts: Texts
    raw_scores: bool = False
    """A field without effect, since scores are cosines."""
    return_text: bool = False
    """Include the texts in the answer."""
    truncate: bool | None = False
    """Truncate texts that are too long; otherwise they are an error."""
    truncation_direction: Literal["Right", "right"] = "Right"


class TeiTokenizeRequest(StrictModel):
    """Texts to tokenise."""

    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None
    """Name of a task, whose instruction comes before each text."""

    @model_validator(mode="after")
    def _check_size(self) -> "TeiTokenizeRequest":
        if sum(map(len, self.inputs)) > MAX_TOKENISE_CHARACTERS:
            raise ValueError(
                f"inputs have more than {MAX_TOKENISE_CHARACTERS:,} characters together"
            )
        return self


async def _encode(
    context: RequestContext, model: ServedModel, choice: TaskChoice, output: str
) -> Encoded:
    """One output of the texts of a request that embeds."""
    request: TeiRequest = context.body
    encoded = await model.encode(
        request.inputs,
        choice,
        [output],
        context.api_key,
        truncate=bool(request.truncate),
        param="inputs",
    )
    context.record_usage(texts=len(encoded), tokens=encoded.num_tokens)
    return encoded


async def tei_embed(context: RequestContext) -> Response:
    """POST /embed: one vector per text."""
    request: TeiRequest = context.body
    model = context.service.models[0]
    choice = model.choose_task(request.prompt_name)
    dim = model.check_dim(request.dimensions, packs_bits=False)
    encoded = await _encode(context, model, choice, "dense")

    def write() -> bytes:
        return to_json(list(truncate_means(encoded.dense, dim, normalized=request.normalize)))

    body = await context.serialise(write, len(encoded) * dim)
    return Response(body, media_type="application/json")


async def tei_embed_all(context: RequestContext) -> Response:
    """POST /embed_all: one vector per token, not normalised."""
    request: TeiRequest = context.body
    model = context.service.models[0]
    choice = model.choose_task(request.prompt_name)
    dim = model.check_dim(request.dimensions, packs_bits=False)
    encoded = await _encode(context, model, choice, HIDDEN)

    def write() -> list[bytes]:
        texts = [truncate_means(rows, dim, normalized=False) for rows in encoded.hidden or []]
        return join_slices(nested_slices(vector_slices(vectors, "float") for vectors in texts))

    slices = await context.serialise(write, encoded.num_tokens * dim)
    return SlicedResponse(slices)


async def tei_embed_sparse(context: RequestContext) -> Response:
    """POST /embed_sparse: token ids and their weights."""
    request: TeiRequest = context.body
    model = context.service.models[0]
    choice = model.choose_task(request.prompt_name)
    encoded = await _encode(context, model, choice, "sparse")
    sparse = encoded.sparse
    assert sparse is not None

    def write() -> bytes:
        rows = [[part.tolist() for part in sparse.row(number)] for number in range(len(sparse))]
        return to_json(
            [
                [{"index": i, "value": weight} for i, weight in zip(ids, weights, strict=True)]
                for ids, weights in rows
            ]
        )

    body = await context.serialise(write, len(sparse.data))
    return Response(body, media_type="application/json")


async def tei_rerank(context: RequestContext) -> Response:
    """POST /rerank: texts sorted by their cosine with the query, best first."""
    request: TeiRerankRequest = context.body
    ranked, num_tokens = await context.service.models[0].rerank(
        request.query,
        request.texts,
        context.api_key,
        truncate=bool(request.truncate),
        param="texts",
    )
    context.record_usage(texts=len(ranked) + 1, tokens=num_tokens)
    ranks: list[dict[str, Any]] = [{"index": one.index, "score": one.score} for one in ranked]
    if request.return_text:
        for rank in ranks:
            rank["text"] = request.texts[rank["index"]]
    return json_response(ranks)


async def tei_tokenize(context: RequestContext) -> Response:
    """POST /tokenize: token ids with their offsets."""
    request: TeiTokenizeRequest = context.body
    model = context.service.models[0]
    prompt = model.choose_task(request.prompt_name).prompt
    model.check_texts(request.inputs, "inputs")

    texts = [prompt + text for text in request.inputs]
    tokens = await model.tokenise_whole(texts, "inputs")
    context.api_key.charge(sum(len(text.ids) for text in tokens))

    def write() -> list[bytes]:
        objects = (
            _token_objects(model.tokenizer, text, one, request.add_special_tokens)
            for text, one in zip(texts, tokens, strict=True)
        )
        return join_slices(nested_slices(map(object_slices, objects)))

    return SlicedResponse(await context.service.threads.run(write))


def _token_objects(
    tokenizer: Tokenizer, text: str, tokens: Tokens, with_special: bool
) -> Iterator[dict[str, Any]]:
    """Yield what the answer says about each token of a text."""
    last = len(tokens.ids) - 1
    for number in range(last + 1) if with_special else range(1, last):
        special = number in (0, last)
        start, stop = (0, 0) if special else tokens.offsets[number].tolist()
        token_id = int(tokens.ids[number])
        yield {
            "id": token_id,
            "text": tokenizer.core.id_to_token(token_id),
            "special": special,
            "start": start,
            "stop": stop,
        }


async def tei_info(context: RequestContext) -> Response:
    """GET /info."""
    model, limits = context.service.models[0], context.service.limits
    return json_response(
        {
            "model_id": model.name,
            "model_sha": None,
            "model_dtype": "float32",
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": limits.requests,
            "max_input_length": model.config.max_tokens,
            "max_batch_tokens": limits.request_tokens,
            "max_client_batch_size": limits.items,
            "auto_truncate": False,
            "tokenization_workers": TOKENISE_THREADS,
            "version": "polyvec",
        }
    )


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/embed",
        answer=tei_embed,
        summary="TEI: embed texts",
        reads=TeiRequest,
        error_form=ERROR_FORM,
    ),
    Endpoint(
        method="POST",
        path="/embed_all",
        answer=tei_embed_all,
        summary="TEI: embed every token",
        reads=TeiRequest,
        error_form=ERROR_FORM,
    ),
    Endpoint(
        method="POST",
        path="/embed_sparse",
        answer=tei_embed_sparse,
        summary="TEI: weigh the tokens of texts",
        reads=TeiRequest,
        error_form=ERROR_FORM,
    ),
    Endpoint(
        method="POST",
        path="/rerank",
        answer=tei_rerank,
        summary="TEI: sort texts by their relevance to a query",
        reads=TeiRerankRequest,
        error_form=ERROR_FORM,
    ),
    Endpoint(
        method="POST",
        path="/tokenize",
        answer=tei_tokenize,
        summary="TEI: tokenise texts",
        reads=TeiTokenizeRequest,
        error_form=ERROR_FORM,
    ),
    Endpoint(
        method="GET",
        path="/info",
        answer=tei_info,
        summary="TEI: describe the model",
        error_form=ERROR_FORM,
    ),
]
