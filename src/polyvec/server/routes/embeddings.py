"""POST /v1/embeddings, for Jina's clients and OpenAI's."""

from starlette.responses import Response

from polyvec.server.app import Call, Endpoint
from polyvec.server.errors import bad_input
from polyvec.server.model import Served
from polyvec.server.serialise import embedding_body, embedding_rows, shape, sparse_rows, token_rows
from polyvec.server.wire import EmbeddingRequest, EmbeddingResponse

SLICE = 32
"""Texts whose vectors are written at once; between slices other threads have their turn."""


async def embeddings(call: Call) -> Response:
    """POST /v1/embeddings."""
    request: EmbeddingRequest = call.body
    model = call.service.find(request.model)
    model.check_task(request.task)
    binary = bool({"binary", "ubinary"} & set(request.encodings))
    dim = model.check_dim(request.dimensions, binary=binary)
    if request.output == "sparse":
        return await _sparse(call, model, request)
    if request.output == "multi_vector":
        return await _multi_vector(call, model, request)
    truncate = bool(request.truncate)
    if request.late_chunking:
        texts = only_texts(request.input, "late_chunking")
        means, tokens = await model.embed_chunks(
            texts, request.task, call.client, truncate=truncate
        )
    else:
        means, tokens = await model.embed(
            request.input, request.task, call.client, truncate=truncate
        )
    call.note(texts=len(means), tokens=tokens)
    normalized = request.normalized is not False

    def write() -> bytes:
        vectors = shape(means, dim, normalized=normalized)
        rows: list[bytes] = []
        for first in range(0, len(vectors), SLICE):
            part = embedding_rows(
                vectors[first : first + SLICE], request.encodings, first_index=first
            )
            rows.extend(part)
        return embedding_body(request.model, rows, tokens)

    body = await call.make(write, means.shape[0] * dim)
    return Response(body, media_type="application/json")


async def _sparse(call: Call, model: Served, request: EmbeddingRequest) -> Response:
    texts = _plain(request)
    sparse, tokens = await model.embed_sparse(
        texts, request.task, call.client, truncate=bool(request.truncate)
    )
    call.note(texts=len(texts), tokens=tokens)

    def write() -> bytes:
        rows = sparse_rows(sparse.to_dicts(model.tokenizer))
        return embedding_body(request.model, rows, tokens)

    body = await call.make(write, len(sparse.data))
    return Response(body, media_type="application/json")


async def _multi_vector(call: Call, model: Served, request: EmbeddingRequest) -> Response:
    texts = _plain(request)
    if len(request.encodings) > 1:
        raise bad_input("with output multi_vector, ask for one embedding_type", "embedding_type")
    if request.encodings[0] in ("binary", "ubinary") and model.config.multi_vector_dim % 8:
        raise bad_input("this model's token vectors have no binary form", "embedding_type")
    vectors, tokens = await model.embed_multi_vector(
        texts, request.task, call.client, truncate=bool(request.truncate)
    )
    call.note(texts=len(texts), tokens=tokens)

    def write() -> bytes:
        return embedding_body(request.model, token_rows(vectors, request.encodings[0]), tokens)

    body = await call.make(write, sum(rows.size for rows in vectors))
    return Response(body, media_type="application/json")


def _plain(request: EmbeddingRequest) -> list[str]:
    """The texts of a request whose answer has no dims and no context."""
    for name in ("dimensions", "late_chunking"):
        if getattr(request, name):
            raise bad_input(f"output {request.output} has no {name}", name)
    return only_texts(request.input, f"output {request.output}")


def only_texts(given: list[str] | list[list[int]], what: str) -> list[str]:
    """The input, which must not be token ids here."""
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise bad_input(f"{what} needs texts, not token ids")
    return texts


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/embeddings",
        answer=embeddings,
        summary="Vectors of texts",
        reads=EmbeddingRequest,
        writes=EmbeddingResponse,
    ),
]
