"""POST /v1/classify and /v1/train, and /v1/classifiers.

Axes in this file: N texts, L labels.
"""

import asyncio
import uuid
from typing import Any

import numpy as np
from jaxtyping import Float32
from starlette.responses import Response

from polyvec import outputs
from polyvec.server.app import Call, Endpoint, json_response
from polyvec.server.errors import ApiError
from polyvec.server.model import Served
from polyvec.server.requests import ClassifyRequest, TrainRequest
from polyvec.server.serialise import shape
from polyvec.server.stores.classifiers import Classifiers

TASK = "classification"


async def classify(call: Call) -> Response:
    """POST /v1/classify."""
    request: ClassifyRequest = call.body
    if len(request.input) > 512:
        raise ApiError(400, "INPUT_INVALID", "input has more than 512 texts", param="input")
    if request.classifier_id is not None:
        data, tokens = await _few_shot(call, request, request.classifier_id)
    else:
        data, tokens = await _zero_shot(call, request)
    call.note(texts=len(data), tokens=tokens)
    return json_response({"data": data, "usage": {"total_tokens": tokens}})


async def _zero_shot(call: Call, request: ClassifyRequest) -> tuple[list[dict[str, Any]], int]:
    model = call.service.find(request.model or "")
    task, labels = _task(model), request.labels
    groups = labels if isinstance(labels, dict) else {"": labels or []}
    every = [label for group in groups.values() for label in group]
    (texts, few), (names, many) = await asyncio.gather(
        model.embed(request.input, task, call.client, truncate=True),
        model.embed(every, task, call.client, truncate=True, param="labels"),
    )

    def write() -> list[dict[str, Any]]:
        cosines = outputs.similarity(texts, names)
        found: dict[str, list[dict[str, Any]]] = {}
        first = 0
        for name, group in groups.items():
            part = cosines[:, first : first + len(group)]
            found[name] = [_rank(group, row) for row in softmax(part)]
            first += len(group)
        rows = []
        for index in range(len(texts)):
            mine = {name: ranks[index] for name, ranks in found.items()}
            row: dict[str, Any] = {"object": "classification", "index": index}
            if isinstance(labels, dict):
                for field in ("prediction", "score", "predictions"):
                    row[field] = {name: one[field] for name, one in mine.items()}
            else:
                row |= mine[""]
            rows.append(row)
        return rows

    return await asyncio.to_thread(write), few + many


async def _few_shot(
    call: Call, request: ClassifyRequest, key: str
) -> tuple[list[dict[str, Any]], int]:
    kept, user = _kept(call), user_id(call.client.name)
    classifier = await asyncio.to_thread(kept.use, user, key)
    model = call.service.find(classifier.model)
    means, tokens = await model.embed(request.input, _task(model), call.client, truncate=True)

    def write() -> list[dict[str, Any]]:
        vectors = shape(means, model.config.width, normalized=True)
        ranks = [_rank(classifier.labels, row) for row in softmax(classifier.scores(vectors))]
        return [{"object": "classification", "index": i, **rank} for i, rank in enumerate(ranks)]

    return await asyncio.to_thread(write), tokens


async def train(call: Call) -> Response:
    """POST /v1/train."""
    request: TrainRequest = call.body
    kept, user = _kept(call), user_id(call.client.name)
    name = request.model
    if request.classifier_id is not None:
        known = await asyncio.to_thread(kept.peek, user, request.classifier_id, write=True)
        name = known.model
    model = call.service.find(name or "")
    texts = [item.text for item in request.items]
    labels = [item.label for item in request.items]
    means, tokens = await model.embed(texts, _task(model), call.client, truncate=True)
    call.note(texts=len(texts), tokens=tokens)
    iters = request.num_iters

    def learn() -> str:
        vectors = shape(means, model.config.width, normalized=True)
        if request.classifier_id is None:
            return kept.create(user, model.name, request.access, labels, vectors, iters)
        kept.update(user, request.classifier_id, labels, vectors, iters)
        return request.classifier_id

    key = await asyncio.to_thread(learn)
    usage = {"total_tokens": tokens}
    return json_response({"classifier_id": key, "num_samples": len(texts), "usage": usage})


async def list_classifiers(call: Call) -> Response:
    """GET and POST /v1/classifiers: the caller's own."""
    found = await asyncio.to_thread(_kept(call).list, user_id(call.client.name))
    return json_response(found)


async def delete_classifier(call: Call) -> Response:
    """DELETE /v1/classifiers/{id}."""
    key = call.path["classifier_id"]
    await asyncio.to_thread(_kept(call).delete, user_id(call.client.name), key)
    return json_response({"classifier_id": key, "deleted": True})


def user_id(name: str) -> str:
    """The UUID of a key's name."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"polyvec:{name}"))


def softmax(scores: Float32[np.ndarray, "N L"]) -> Float32[np.ndarray, "N L"]:
    """Scores as shares of 1, at temperature 1 as the hosted API seems to do."""
    exponents = np.exp(scores - scores.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def _rank(labels: list[str], scores: Float32[np.ndarray, " L"]) -> dict[str, Any]:
    best = int(scores.argmax())
    pairs = zip(labels, scores.tolist(), strict=True)
    return {
        "prediction": labels[best],
        "score": float(scores[best]),
        "predictions": [{"label": label, "score": score} for label, score in pairs],
    }


def _task(model: Served) -> str | None:
    return TASK if TASK in {task.name for task in model.config.tasks} else None


def _kept(call: Call) -> Classifiers:
    if call.service.classifiers is None:
        raise ApiError(
            404,
            "RESOURCE_NOT_FOUND",
            "this server keeps no classifiers; start it with --classifiers FILE",
        )
    return call.service.classifiers


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/classify",
        answer=classify,
        summary="Texts by labels, zero-shot or by a trained classifier",
        reads=ClassifyRequest,
    ),
    Endpoint(
        method="POST",
        path="/v1/train",
        answer=train,
        summary="Train a classifier on examples",
        reads=TrainRequest,
    ),
    *(
        Endpoint(
            method=method,
            path="/v1/classifiers",
            answer=list_classifiers,
            summary="Trained classifiers",
        )
        for method in ("GET", "POST")
    ),
    Endpoint(
        method="DELETE",
        path="/v1/classifiers/{classifier_id}",
        answer=delete_classifier,
        summary="Forget a classifier",
    ),
]
