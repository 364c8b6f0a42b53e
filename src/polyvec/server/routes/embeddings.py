"""POST /v1/embeddings, for the clients of Jina and of OpenAI.

The same handler answers the paths of Azure and of TEI, whose own servers ignore unknown fields.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from polyvec.late_chunking import ChunkChoice, Semantic, Sentences
from polyvec.server.documents import encode_chunks, encode_document
from polyvec.server.errors import invalid_input
from polyvec.server.inputs import Side
from polyvec.server.limits import Limits
from polyvec.server.model import Encoded, ServedModel
from polyvec.server.serialise import (
    dense_objects,
    embedding_body,
    multi_vector_objects,
    pack_bits,
    sparse_objects,
    truncate_means,
)
from polyvec.server.service import Endpoint, RequestContext
from polyvec.server.wire import Dimensions, Input, JinaEncoding, StrictModel

SERIALISE_TEXTS = 32
"""Texts whose vectors are serialised in one go; then other threads have their turn."""

Encodings = JinaEncoding | Annotated[list[JinaEncoding], Field(min_length=1, max_length=4)] | None


MAX_SPANS = 10_000
"""Maximum number of spans that are read; the limit of chunks in a request is lower by default."""

Position = Annotated[int, Field(ge=0)]
Span = Annotated[list[Position], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Language = Annotated[str, Field(pattern="^[a-z]{2,3}$")]


class SemanticChunks(StrictModel):
    """Chunks that end where the topic changes."""

    percentile: Annotated[int, Field(ge=0, le=100)] = Semantic().percentile
    """A chunk ends where the distance between two sentences exceeds this percentile of all."""
    buffer: Annotated[int, Field(ge=0, le=10)] = Semantic().buffer
    """Number of sentences before and after each sentence that are embedded together with it."""


class Chunking(StrictModel):
    """How one text is cut into chunks. Exactly one of the first four fields says it."""

    tokens: Count | None = None
    """Tokens per chunk."""
    sentences: Count | None = None
    """Sentences per chunk."""
    semantic: SemanticChunks | None = None
    """Chunks that end where the topic changes; `{}` uses the defaults."""
    spans: Annotated[list[Span], Field(max_length=MAX_SPANS)] | None = None
    """The characters [start, end) of each chunk. Chunks may overlap and leave gaps."""
    language: Language = "en"
    """Language (ISO 639-1) whose abbreviations do not end sentences."""

    @model_validator(mode="after")
    def _check_choice(self) -> "Chunking":
        given = (self.tokens, self.sentences, self.semantic, self.spans)
        if sum(choice is not None for choice in given) != 1:
            raise ValueError("give one of tokens, sentences, semantic and spans")
        return self

    def choose(self) -> ChunkChoice:
        """The choice as the library has it."""
        if self.tokens is not None:
            return self.tokens
        if self.sentences is not None:
            return Sentences(self.sentences, self.language)
        if self.semantic is not None:
            return Semantic(self.semantic.percentile, self.semantic.buffer, self.language)
        return [(start, end) for start, end in self.spans or []]


class EmbeddingRequest(StrictModel):
    """The fields of Jina's API and of OpenAI's, which have different names."""

    model: str
    """Name of the model; GET /v1/models lists the models."""
    input: Input
    """A text, an object with "text", a list of these, or token ids of this model's tokenizer."""
    task: str | None = None
    """One of the model's tasks, which chooses the adapter; null uses no adapter."""
    dimensions: Dimensions | None = None
    """Size of the vectors, at most the model's width; preferably one of its Matryoshka sizes."""
    late_chunking: bool | None = None
    """Encode all inputs as one document, joined by single spaces; still one vector per input."""
    chunking: Chunking | None = None
    """With late_chunking, `input` is one text of any length, and this cuts it into chunks. A field
    of polyvec's own."""
    embedding_type: Encodings = None
    """Encoding of the vectors. With a list, `embedding` has the first, `embedding_types` all."""
    encoding_type: Encodings = None
    """LlamaIndex's name for `embedding_type`."""
    encoding_format: Literal["float", "base64"] | None = None
    """OpenAI's name for `embedding_type`."""
    normalized: bool | None = True
    """Scale every vector to length 1."""
    truncate: bool | Literal["end", "start", "error"] | None = False
    """What a text that is too long loses: its "end" (the same as true) or its "start". With false
    or "error" it is an error 400. The words are polyvec's own."""
    user: str | None = None
    """A field of OpenAI's API without effect."""
    output: Literal["dense", "sparse", "multi_vector"] = "dense"
    """One vector per text, token weights, or one vector per token. A field of polyvec's own."""

    @classmethod
    def max_values(cls, limits: Limits) -> int:
        """As for other bodies, and every token id is a value."""
        return super().max_values(limits) + limits.request_tokens

    @model_validator(mode="after")
    def _check_encodings(self) -> "EmbeddingRequest":
        given = (self.embedding_type, self.encoding_type, self.encoding_format)
        named = [[e] if isinstance(e, str) else e for e in given if e is not None]
        if any(other != named[0] for other in named):
            raise ValueError("embedding_type, encoding_type and encoding_format differ")
        return self

    @property
    def truncation(self) -> tuple[bool, Side]:
        """Whether texts that are too long are truncated, and the side that they lose."""
        side: Side = "left" if self.truncate == "start" else "right"
        return self.truncate not in (None, False, "error"), side

    @property
    def encodings(self) -> list[str]:
        """The encodings of the vectors, at least one."""
        given = self.embedding_type or self.encoding_type or self.encoding_format or "float"
        return [given] if isinstance(given, str) else given


class CompatibleRequest(EmbeddingRequest):
    """The body of a path that other servers have. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name of the model; by default the deployment in the path, or the server's first model."""


class Usage(BaseModel):
    """Tokens that the model has read, special tokens and instructions included."""

    total_tokens: int
    prompt_tokens: int
    truncated_texts: int | None = None
    """Number of texts that were truncated; absent if none was. A field of polyvec's own."""


class Embedding(BaseModel):
    """The vector of one text, or the weights of its tokens."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | list[int] | str | dict[str, float]
    embedding_types: dict[JinaEncoding, list[float] | list[int] | str] | None = None
    start: int | None = None
    """With `chunking`, the chunk's first character in the text, counted in Unicode code points."""
    end: int | None = None
    """With `chunking`, the character after the chunk's last one."""


class MultiVectorEmbedding(BaseModel):
    """The vectors of one text, one per token."""

    object: Literal["embeddings"]
    index: int
    embeddings: list[list[float]] | list[list[int]] | list[str]


class EmbeddingResponse(BaseModel):
    """The vectors in the order of the inputs."""

    object: Literal["list"]
    model: str
    data: list[Embedding] | list[MultiVectorEmbedding]
    usage: Usage


async def embeddings(context: RequestContext) -> Response:
    """POST /v1/embeddings."""
    request: EmbeddingRequest = context.body
    name = context.path_params.get("deployment", request.model)
    model = context.service.choose_model(name)
    choice = model.choose_task(request.task)
    _check_options(request, model)
    dim = model.check_dim(request.dimensions, packs_bits=pack_bits(request.encodings))
    truncate, side = request.truncation
    if request.chunking is not None:
        text = _only_document(request)
        chunks = request.chunking.choose()
        encoded = await encode_document(
            model, text, choice, chunks, context.api_key, traffic=context.traffic
        )
    elif request.late_chunking:
        if side == "left":
            raise invalid_input(
                "late_chunking reads a document from its start: truncate must not be start",
                "truncate",
            )
        chunks = _only_texts(request.input, "late_chunking")
        encoded = await encode_chunks(
            model, chunks, choice, context.api_key, truncate=truncate, traffic=context.traffic
        )
    else:
        encoded = await model.encode(
            request.input,
            choice,
            [request.output],
            context.api_key,
            truncate=truncate,
            truncation_side=side,
            traffic=context.traffic,
        )
    context.record_usage(texts=len(encoded), tokens=encoded.num_tokens)

    def write() -> bytes:
        objects = _serialise(request, model, encoded, dim)
        return embedding_body(
            name or model.name, objects, encoded.num_tokens, encoded.num_truncated
        )

    body = await context.serialise(write, _count_numbers(encoded, dim))
    return Response(body, media_type="application/json")


def _check_options(request: EmbeddingRequest, model: ServedModel) -> None:
    """Raise ApiError 400 for options that the requested output does not have."""
    if request.output == "dense":
        return
    for name in ("dimensions", "late_chunking", "chunking"):
        if getattr(request, name):
            raise invalid_input(f"output {request.output} does not support {name}", name)
    _only_texts(request.input, f"output {request.output}")
    if request.output == "multi_vector":
        if len(request.encodings) > 1:
            raise invalid_input(
                "output multi_vector supports only one embedding_type per request",
                "embedding_type",
            )
        if pack_bits(request.encodings) and model.config.multi_vector_dim % 8:
            raise invalid_input(
                f"this model's token embeddings have {model.config.multi_vector_dim} numbers, "
                "which is not a multiple of 8, so they have no binary form",
                "embedding_type",
            )


def _serialise(
    request: EmbeddingRequest, model: ServedModel, encoded: Encoded, dim: int
) -> list[bytes]:
    """The objects of `data`."""
    if encoded.sparse is not None:
        return sparse_objects(encoded.sparse.to_dicts(model.tokenizer))
    if encoded.multi_vector is not None:
        return multi_vector_objects(encoded.multi_vector, request.encodings[0])
    vectors = truncate_means(encoded.dense, dim, normalized=request.normalized is not False)
    objects: list[bytes] = []
    for first in range(0, len(vectors), SERIALISE_TEXTS):
        group = vectors[first : first + SERIALISE_TEXTS]
        offsets = encoded.offsets and encoded.offsets[first : first + SERIALISE_TEXTS]
        objects.extend(dense_objects(group, request.encodings, first_index=first, offsets=offsets))
    return objects


def _count_numbers(encoded: Encoded, dim: int) -> int:
    if encoded.sparse is not None:
        return len(encoded.sparse.data)
    if encoded.multi_vector is not None:
        return sum(vectors.size for vectors in encoded.multi_vector)
    return len(encoded) * dim


def _only_document(request: EmbeddingRequest) -> str:
    """The one text that `chunking` cuts. Raises ApiError 400."""
    if not request.late_chunking:
        raise invalid_input("chunking needs late_chunking: true", "chunking")
    texts = _only_texts(request.input, "chunking")
    if len(texts) != 1:
        raise invalid_input(
            f"chunking cuts one text, and input has {len(texts):,}; send one text, or omit "
            "chunking if these are the chunks of a document",
            "chunking",
        )
    return texts[0]


def _only_texts(inputs: list[str] | list[list[int]], option: str) -> list[str]:
    """The input of an option that does not support token ids. Raises ApiError 400."""
    texts = [text for text in inputs if isinstance(text, str)]
    if len(texts) < len(inputs):
        raise invalid_input(f"{option} needs texts, not token ids")
    return texts


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/embeddings",
        answer=embeddings,
        summary="Embed texts",
        reads=EmbeddingRequest,
        writes=EmbeddingResponse,
    ),
    *(
        Endpoint(
            method="POST",
            path=path,
            answer=embeddings,
            summary=summary,
            reads=CompatibleRequest,
            writes=EmbeddingResponse,
        )
        for path, summary in (
            ("/embeddings", "TEI: embed texts, for the clients of OpenAI"),
            ("/openai/v1/embeddings", "Azure: embed texts"),
            (
                "/openai/deployments/{deployment:path}/embeddings",
                "Azure: embed texts with the model that the path names",
            ),
        )
    ),
]
