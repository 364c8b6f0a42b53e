"""The routes of Text Embeddings Inference (TEI). They use the first model of the server."""

import asyncio
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from starlette.responses import Response

from polyvec.server.errors import AnyError, ApiError, ErrorForm, invalid_input
from polyvec.server.inputs import Side
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
from polyvec.server.wire import (
    MAX_TOKENISE_CHARACTERS,
    Dimensions,
    IdLists,
    Input,
    ItemCount,
    Texts,
    TokenIds,
    TolerantModel,
)
from polyvec.tokenizer import Tokenizer, Tokens

ERROR_TYPES = {429: "Overloaded", 503: "Unhealthy"}
"""TEI's error types; other 4xx are "Validation" and other 5xx are "Backend"."""


class TeiErrorResponse(AnyError):
    """An error as TEI's clients read it."""

    error: str
    error_type: str


def _error_type(error: ApiError) -> str:
    return ERROR_TYPES.get(error.status, "Backend" if error.status >= 500 else "Validation")


ERROR_FORM = ErrorForm(
    TeiErrorResponse,
    lambda error, _: {"error": error.message, "error_type": _error_type(error)},
)


class Truncation(TolerantModel):
    """Whether and where texts that are too long are truncated."""

    truncate: bool | None = False
    """Truncate texts that are too long; otherwise they are an error."""
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = "Right"
    """The side of a text that truncation removes."""

    @property
    def truncation_side(self) -> Side:
        """The side in lower case."""
        return "left" if self.truncation_direction in ("Left", "left") else "right"


class TeiOptions(Truncation):
    """Options of every route that embeds."""

    prompt_name: str | None = None
    """Name of the task."""


class TeiEmbedOptions(TeiOptions):
    """Options of the routes that return embeddings."""

    normalize: bool | None = True
    """Scale every vector to length 1."""
    dimensions: Dimensions | None = None
    """Size of the vectors, at most the model's width."""


class TeiRequest(TeiEmbedOptions):
    """Texts to embed."""

    inputs: Input


class SimilarityInput(TolerantModel):
    """A sentence, and the sentences to compare with it."""

    source_sentence: str
    sentences: Annotated[list[str], Field(min_length=1)]


class TeiSimilarityRequest(TolerantModel):
    """Sentences to compare."""

    inputs: SimilarityInput
    parameters: TeiOptions | None = None


def _input_kind(value: Any) -> str:
    is_similarity = isinstance(value, SimilarityInput) or (
        isinstance(value, dict) and "source_sentence" in value
    )
    return "similarity" if is_similarity else "embed"


class TeiRootRequest(TeiEmbedOptions):
    """Texts to embed, or sentences to compare: the form of the input decides."""

    inputs: Annotated[
        Annotated[Input, Tag("embed")] | Annotated[SimilarityInput, Tag("similarity")],
        Discriminator(_input_kind),
    ]
    parameters: TeiOptions | None = None
    """Options for sentences to compare, which may also stand beside `inputs`."""


class TeiPredictRequest(Truncation):
    """Texts to classify."""

    inputs: Any


class TeiRerankRequest(Truncation):
    """A query, and the texts to sort."""

    query: str
    texts: Texts
    raw_scores: bool = False
    """A field without effect, since scores are cosines."""
    return_text: bool | None = False
    """Include the texts in the answer."""
    return_documents: bool | None = None
    """Another name of `return_text`, which other rerank APIs use."""
    top_n: ItemCount | None = None
    """Number of texts to return; by default all. TEI itself returns all."""


class TeiTokenizeRequest(TolerantModel):
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


class TeiDecodeRequest(TolerantModel):
    """Token ids to turn into texts."""

    ids: IdLists
    skip_special_tokens: bool = True
    """Leave `<s>` and `</s>` out of the texts."""

    @model_validator(mode="after")
    def _check_size(self) -> "TeiDecodeRequest":
        if sum(map(len, self.ids)) > MAX_TOKENISE_CHARACTERS:
            raise ValueError(f"ids has more than {MAX_TOKENISE_CHARACTERS:,} token ids together")
        return self


async def _encode(
    context: RequestContext,
    texts: list[str] | TokenIds,
    options: TeiOptions,
    output: str,
    param: str = "inputs",
    model: ServedModel | None = None,
) -> Encoded:
    """One output of the texts of a request that embeds."""
    model = model or context.service.models[0]
    return await model.encode(
        texts,
        model.choose_task(options.prompt_name),
        [output],
        context.api_key,
        truncate=bool(options.truncate),
        truncation_side=options.truncation_side,
        param=param,
    )


def _check_dim(context: RequestContext, options: TeiEmbedOptions) -> int:
    return context.service.models[0].check_dim(options.dimensions, packs_bits=False)


async def tei_embed(context: RequestContext) -> Response:
    """POST /embed: one vector per text."""
    request: TeiRequest = context.body
    return await _embed(context, request.inputs, request)


async def _embed(
    context: RequestContext, texts: list[str] | TokenIds, options: TeiEmbedOptions
) -> Response:
    dim = _check_dim(context, options)
    encoded = await _encode(context, texts, options, "dense")
    context.record_usage(texts=len(encoded), tokens=encoded.num_tokens)

    def write() -> list[bytes]:
        vectors = truncate_means(encoded.dense, dim, normalized=options.normalize is not False)
        return join_slices(vector_slices(vectors, "float"))

    return SlicedResponse(await context.serialise(write, len(encoded) * dim))


async def tei_root(context: RequestContext) -> Response:
    """POST / and /invocations: embed or compare, as the clients of Hugging Face and SageMaker do.

    These clients send all requests to one address.
    """
    request: TeiRootRequest = context.body
    if isinstance(request.inputs, SimilarityInput):
        return await _compare(context, request.inputs, request.parameters or request)
    return await _embed(context, request.inputs, request)


async def tei_similarity(context: RequestContext) -> Response:
    """POST /similarity: the cosine of one sentence with each of the others."""
    request: TeiSimilarityRequest = context.body
    return await _compare(context, request.inputs, request.parameters or TeiOptions())


async def _compare(
    context: RequestContext, inputs: SimilarityInput, options: TeiOptions
) -> Response:
    # The model may be replaced before both have begun.
    model = context.service.models[0]
    width = model.config.width
    # The scheduler puts both into one batch.
    source, others = await asyncio.gather(
        _encode(context, [inputs.source_sentence], options, "dense", "source_sentence", model),
        _encode(context, inputs.sentences, options, "dense", "sentences", model),
    )
    context.record_usage(texts=1 + len(others), tokens=source.num_tokens + others.num_tokens)

    def write() -> bytes:
        [vector] = truncate_means(source.dense, width)
        return to_json(truncate_means(others.dense, width) @ vector)

    body = await context.serialise(write, len(others) * width)
    return Response(body, media_type="application/json")


async def tei_embed_all(context: RequestContext) -> Response:
    """POST /embed_all: one vector per token, not normalised."""
    request: TeiRequest = context.body
    dim = _check_dim(context, request)
    encoded = await _encode(context, request.inputs, request, HIDDEN)
    context.record_usage(texts=len(encoded), tokens=encoded.num_tokens)

    def write() -> list[bytes]:
        texts = [truncate_means(rows, dim, normalized=False) for rows in encoded.hidden or []]
        return join_slices(nested_slices(vector_slices(vectors, "float") for vectors in texts))

    slices = await context.serialise(write, encoded.num_tokens * dim)
    return SlicedResponse(slices)


async def tei_embed_sparse(context: RequestContext) -> Response:
    """POST /embed_sparse: token ids and their weights."""
    request: TeiRequest = context.body
    encoded = await _encode(context, request.inputs, request, "sparse")
    context.record_usage(texts=len(encoded), tokens=encoded.num_tokens)
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


async def tei_predict(context: RequestContext) -> Response:
    """POST /predict: an error, because no model of this server is a classifier."""
    model = context.service.models[0]
    raise invalid_input(
        f"{model.name} is an embedding model and not a classifier; POST /v1/classify classifies "
        "texts by the names of labels or by examples",
        param=None,
    )


async def tei_rerank(context: RequestContext) -> Response:
    """POST /rerank: texts sorted by their cosine with the query, best first."""
    request: TeiRerankRequest = context.body
    ranked, num_tokens = await context.service.models[0].rerank(
        request.query,
        request.texts,
        context.api_key,
        truncate=bool(request.truncate),
        truncation_side=request.truncation_side,
        param="texts",
    )
    context.record_usage(texts=len(ranked) + 1, tokens=num_tokens)
    ranks: list[dict[str, Any]] = [
        {"index": one.index, "score": one.score} for one in ranked[: request.top_n]
    ]
    if request.return_text or request.return_documents:
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


async def tei_decode(context: RequestContext) -> Response:
    """POST /decode: the texts of token ids."""
    request: TeiDecodeRequest = context.body
    model, limit = context.service.models[0], context.service.limits.items
    if len(request.ids) > limit:
        raise invalid_input(f"{len(request.ids):,} lists are too many; the limit is {limit:,}")
    vocab_size = model.tokenizer.vocab_size

    def decode() -> list[str]:
        for number, ids in enumerate(request.ids):
            if min(ids) < 0 or max(ids) >= vocab_size:
                param = f"ids[{number}]"
                raise invalid_input(f"{param} holds an id outside 0..{vocab_size - 1}", param)
        return model.tokenizer.core.decode_batch(
            request.ids, skip_special_tokens=request.skip_special_tokens
        )

    texts = await asyncio.to_thread(decode)
    context.api_key.charge(sum(map(len, request.ids)))
    return json_response(texts)


async def tei_info(context: RequestContext) -> Response:
    """GET /info."""
    model, limits = context.service.models[0], context.service.limits
    return json_response(
        {
            "model_id": model.name,
            "model_sha": None,
            "model_dtype": "float32",
            "served_model_name": model.name,
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": limits.requests,
            "max_input_length": model.config.max_tokens,
            "max_batch_tokens": limits.request_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": limits.items,
            "auto_truncate": False,
            "tokenization_workers": TOKENISE_THREADS,
            "version": version("polyvec"),
            "sha": None,
            "docker_label": None,
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
        path="/",
        answer=tei_root,
        summary="TEI: embed texts, or compare sentences",
        reads=TeiRootRequest,
        error_form=ERROR_FORM,
    ),
    Endpoint(
        method="POST",
        path="/invocations",
        answer=tei_root,
        summary="TEI on SageMaker: embed texts, or compare sentences",
        reads=TeiRootRequest,
        error_form=ERROR_FORM,
    ),
    Endpoint(
        method="POST",
        path="/similarity",
        answer=tei_similarity,
        summary="TEI: compare one sentence with others",
        reads=TeiSimilarityRequest,
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
        path="/predict",
        answer=tei_predict,
        summary="TEI: an error, because the models are no classifiers",
        reads=TeiPredictRequest,
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
        method="POST",
        path="/decode",
        answer=tei_decode,
        summary="TEI: turn token ids into texts",
        reads=TeiDecodeRequest,
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
