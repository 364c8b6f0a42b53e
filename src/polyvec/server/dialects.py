"""Text Embeddings Inference's routes and Cohere's, as thin translations. TEI's have no model."""

import asyncio
import uuid
from typing import Any

import numpy as np
from starlette.responses import Response

from polyvec import outputs
from polyvec.server.app import Call, Endpoint, json_response
from polyvec.server.requests import (
    CohereEncoding,
    CohereRequest,
    TeiRequest,
    TeiRerankRequest,
    TeiTokenizeRequest,
)
from polyvec.server.routes.rerank import score
from polyvec.server.serialise import dump, encode, shape

COHERE_TASKS = {
    "search_document": "retrieval.passage",
    "search_query": "retrieval.query",
    "classification": "classification",
    "clustering": "separation",
}


async def tei_embed(call: Call) -> Response:
    """POST /embed: a vector a text."""
    request: TeiRequest = call.body
    model = call.service.served[0]
    model.check_task(request.prompt_name)
    dim = model.check_dim(request.dimensions, binary=False)
    means, tokens = await model.embed(
        request.inputs,
        request.prompt_name,
        call.client,
        truncate=bool(request.truncate),
        param="inputs",
    )
    call.note(texts=len(means), tokens=tokens)
    made = await call.make(
        lambda: dump(list(shape(means, dim, normalized=request.normalize))), len(means) * dim
    )
    return Response(made, media_type="application/json")


async def tei_embed_all(call: Call) -> Response:
    """POST /embed_all: a vector a token, not normalised."""
    request: TeiRequest = call.body
    model = call.service.served[0]
    model.check_task(request.prompt_name)
    dim = model.check_dim(request.dimensions, binary=False)
    states, tokens = await model.embed_tokens(
        request.inputs,
        request.prompt_name,
        call.client,
        truncate=bool(request.truncate),
        param="inputs",
    )
    call.note(texts=len(states), tokens=tokens)
    made = await call.make(
        lambda: dump([list(shape(rows, dim, normalized=False)) for rows in states]), tokens * dim
    )
    return Response(made, media_type="application/json")


async def tei_embed_sparse(call: Call) -> Response:
    """POST /embed_sparse: token ids and their weights."""
    request: TeiRequest = call.body
    model = call.service.served[0]
    model.check_task(request.prompt_name)
    sparse, tokens = await model.embed_sparse(
        request.inputs,
        request.prompt_name,
        call.client,
        truncate=bool(request.truncate),
        param="inputs",
    )
    call.note(texts=len(sparse), tokens=tokens)

    def write() -> bytes:
        rows = [[part.tolist() for part in sparse.row(number)] for number in range(len(sparse))]
        return dump(
            [
                [{"index": i, "value": weight} for i, weight in zip(ids, weights, strict=True)]
                for ids, weights in rows
            ]
        )

    return Response(await call.make(write, len(sparse.data)), media_type="application/json")


async def tei_rerank(call: Call) -> Response:
    """POST /rerank: cosines, the best first."""
    request: TeiRerankRequest = call.body
    scores, tokens = await score(
        call.service.served[0],
        request.query,
        request.texts,
        call.client,
        truncate=bool(request.truncate),
        param="texts",
    )
    call.note(texts=len(scores) + 1, tokens=tokens)
    ranks: list[dict[str, Any]] = [
        {"index": i, "score": float(scores[i])} for i in np.argsort(-scores, kind="stable").tolist()
    ]
    if request.return_text:
        for rank in ranks:
            rank["text"] = request.texts[rank["index"]]
    return json_response(ranks)


async def tei_tokenize(call: Call) -> Response:
    """POST /tokenize."""
    request: TeiTokenizeRequest = call.body
    model = call.service.served[0]
    model.check_task(request.prompt_name)
    model.check_texts(request.inputs, "inputs")
    prompts = {task.name: task.prompt for task in model.config.tasks}
    prompt = prompts.get(request.prompt_name or "", "")

    def write() -> list[list[dict[str, Any]]]:
        core = model.tokenizer.core
        texts = [prompt + text for text in request.inputs]
        found = core.encode_batch(texts, add_special_tokens=request.add_special_tokens)
        return [
            [
                {"id": i, "text": token, "special": bool(special), "start": start, "stop": stop}
                for i, token, special, (start, stop) in zip(
                    one.ids, one.tokens, one.special_tokens_mask, one.offsets, strict=True
                )
            ]
            for one in found
        ]

    rows = await asyncio.to_thread(write)
    call.client.charge(sum(map(len, rows)))
    return json_response(rows)


async def tei_info(call: Call) -> Response:
    """GET /info."""
    model, limits = call.service.served[0], call.service.limits
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
            "tokenization_workers": 4,
            "version": "polyvec",
        }
    )


async def cohere_embed(call: Call) -> Response:
    """POST /v2/embed."""
    request: CohereRequest = call.body
    model = call.service.find(request.model)
    task = COHERE_TASKS[request.input_type]
    model.check_task(task)
    kinds: list[CohereEncoding] = request.embedding_types or ["float"]
    binary = bool({"binary", "ubinary"} & set(kinds))
    dim = model.check_dim(request.output_dimension, binary=binary, param="output_dimension")
    truncate = request.truncate == "END"
    means, tokens = await model.embed(
        request.texts, task, call.client, truncate=truncate, param="texts"
    )
    call.note(texts=len(means), tokens=tokens)

    def write() -> bytes:
        vectors = shape(means, dim, normalized=True)
        columns = {
            kind: list(outputs.to_int8(vectors) if kind == "int8" else encode(vectors, kind))
            for kind in kinds
        }
        return dump(
            {
                "id": str(uuid.uuid4()),
                "embeddings": columns,
                "texts": request.texts,
                "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
                "response_type": "embeddings_by_type",
            }
        )

    body = await call.make(write, len(means) * dim)
    return Response(body, media_type="application/json")


ENDPOINTS = [
    Endpoint(
        method="POST", path="/embed", answer=tei_embed, summary="TEI: vectors", reads=TeiRequest
    ),
    Endpoint(
        method="POST",
        path="/embed_all",
        answer=tei_embed_all,
        summary="TEI: a vector a token",
        reads=TeiRequest,
    ),
    Endpoint(
        method="POST",
        path="/embed_sparse",
        answer=tei_embed_sparse,
        summary="TEI: weights of tokens",
        reads=TeiRequest,
    ),
    Endpoint(
        method="POST",
        path="/rerank",
        answer=tei_rerank,
        summary="TEI: texts by relevance",
        reads=TeiRerankRequest,
    ),
    Endpoint(
        method="POST",
        path="/tokenize",
        answer=tei_tokenize,
        summary="TEI: token ids and offsets",
        reads=TeiTokenizeRequest,
    ),
    Endpoint(method="GET", path="/info", answer=tei_info, summary="TEI: the model's facts"),
    Endpoint(
        method="POST",
        path="/v2/embed",
        answer=cohere_embed,
        summary="Cohere: vectors by type",
        reads=CohereRequest,
    ),
]
