"""POST /v1/classify and /v1/train, and /v1/classifiers, for the clients of Jina.

The probabilities are those of `polyvec classify`: both use `polyvec.classification`.

Axes in this file: L labels.
"""

import asyncio
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float32
from pydantic import Field, model_validator
from starlette.responses import Response

from polyvec.classification import from_names
from polyvec.server.errors import ApiError, ErrorCode, invalid_input
from polyvec.server.model import Encoded, ServedModel
from polyvec.server.serialise import truncate_means
from polyvec.server.service import Endpoint, RequestContext, json_response
from polyvec.server.stores.classifiers import Classifiers, StoredClassifier
from polyvec.server.wire import Label, StrictModel, Texts
from polyvec.tasks import CLASSIFICATION

MAX_TEXTS = 512
"""Maximum number of texts to classify, or of examples, in a request."""

MAX_CALLS_PER_KEY = 16
"""Maximum number of calls of one API key that wait for the classifiers' file or for a fit."""

Result = TypeVar("Result")


class ClassifyRequest(StrictModel):
    """Texts to classify: with `labels` (zero-shot), or with a trained classifier (few-shot)."""

    model: str | None = None
    classifier_id: str | None = None
    input: Texts
    labels: (
        Annotated[list[Label], Field(min_length=1, max_length=512)]
        | Annotated[
            dict[str, Annotated[list[Label], Field(min_length=1, max_length=64)]],
            Field(min_length=1, max_length=8),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _check_kind(self) -> "ClassifyRequest":
        if (self.classifier_id is None) == (self.labels is None):
            raise ValueError("give either labels and a model, or a classifier_id")
        if self.labels is not None and self.model is None:
            raise ValueError("labels need a model")
        return self


class TrainItem(StrictModel):
    """An example: a text and its label."""

    text: str
    label: Label


class TrainRequest(StrictModel):
    """A new classifier for a `model`, or more examples for a `classifier_id`."""

    model: str | None = None
    classifier_id: str | None = None
    input: Annotated[list[TrainItem], Field(min_length=1, max_length=MAX_TEXTS)] | TrainItem
    access: Literal["public", "private"] = "private"
    """A public classifier can be used with every API key, and changed with that of its owner."""
    num_iters: Annotated[int, Field(ge=1, le=100)] = 10
    """A field of Jina's API without effect: the classifier is always fitted until it converges."""

    @model_validator(mode="after")
    def _check_kind(self) -> "TrainRequest":
        if (self.classifier_id is None) == (self.model is None):
            raise ValueError("give either a model or a classifier_id")
        return self

    @property
    def items(self) -> list[TrainItem]:
        """The examples."""
        return [self.input] if isinstance(self.input, TrainItem) else self.input


async def classify(context: RequestContext) -> Response:
    """POST /v1/classify."""
    request: ClassifyRequest = context.body
    if len(request.input) > MAX_TEXTS:
        raise invalid_input(f"input has more than {MAX_TEXTS} texts")
    if request.classifier_id is not None:
        data, num_tokens = await _few_shot(context, request, request.classifier_id)
    else:
        data, num_tokens = await _zero_shot(context, request)
    context.record_usage(texts=len(data), tokens=num_tokens)
    return json_response({"data": data, "usage": {"total_tokens": num_tokens}})


async def _zero_shot(
    context: RequestContext, request: ClassifyRequest
) -> tuple[list[dict[str, Any]], int]:
    model = context.service.choose_model(request.model or "")
    choice, labels, api_key = (
        model.choose_task_or_none(CLASSIFICATION),
        request.labels,
        context.api_key,
    )
    groups = labels if isinstance(labels, dict) else {"": labels or []}
    names = [label for group in groups.values() for label in group]
    # The scheduler puts both into one batch.
    texts, label_texts = await asyncio.gather(
        model.encode(request.input, choice, ["dense"], api_key, truncate=True),
        model.encode(names, choice, ["dense"], api_key, truncate=True, param="labels"),
    )

    def predict() -> list[dict[str, Any]]:
        vectors, label_vectors = _normalise(model, texts), _normalise(model, label_texts)
        predictions: dict[str, list[dict[str, Any]]] = {}
        first = 0
        for name, group in groups.items():
            classifier = from_names(group, label_vectors[first : first + len(group)])
            probabilities = classifier.probabilities(vectors)
            predictions[name] = [_describe(group, row) for row in probabilities]
            first += len(group)
        data = []
        for index in range(len(texts)):
            own = {name: rows[index] for name, rows in predictions.items()}
            item: dict[str, Any] = {"object": "classification", "index": index}
            if isinstance(labels, dict):
                for field in ("prediction", "score", "predictions"):
                    item[field] = {name: prediction[field] for name, prediction in own.items()}
            else:
                item |= own[""]
            data.append(item)
        return data

    return await asyncio.to_thread(predict), texts.num_tokens + label_texts.num_tokens


async def _few_shot(
    context: RequestContext, request: ClassifyRequest, key: str
) -> tuple[list[dict[str, Any]], int]:
    store, user = _get_store(context), user_id(context.api_key.name)
    stored = await _wait_for(context, store.threads, lambda: store.find(user, key, to_change=False))
    model = await _find_model(context, stored)
    choice = model.choose_task_or_none(CLASSIFICATION)
    texts = await model.encode(request.input, choice, ["dense"], context.api_key, truncate=True)

    def predict() -> list[dict[str, Any]]:
        classifier = stored.classifier
        probabilities = classifier.probabilities(_normalise(model, texts))
        return [
            {"object": "classification", "index": index, **_describe(classifier.labels, row)}
            for index, row in enumerate(probabilities)
        ]

    data = await asyncio.to_thread(predict)
    await _wait_for(context, store.threads, lambda: store.count_use(key))
    return data, texts.num_tokens


async def train(context: RequestContext) -> Response:
    """POST /v1/train."""
    request: TrainRequest = context.body
    store, user = _get_store(context), user_id(context.api_key.name)
    key = request.classifier_id
    if key is None:
        model = context.service.choose_model(request.model or "")
    else:
        # A damaged classifier or one of other weights is refused before its texts are encoded.
        stored = await _wait_for(
            context, store.threads, lambda: store.find(user, key, to_change=True)
        )
        model = await _find_model(context, stored)
    labels = [item.label for item in request.items]
    examples = await model.encode(
        [item.text for item in request.items],
        model.choose_task_or_none(CLASSIFICATION),
        ["dense"],
        context.api_key,
        truncate=True,
    )
    context.record_usage(texts=len(labels), tokens=examples.num_tokens)

    fingerprint = await _fingerprint(model)
    access = request.access if "access" in request.model_fields_set else None
    is_abandoned = threading.Event()

    def check() -> None:
        if is_abandoned.is_set():
            raise CancelledError

    def learn() -> str:
        vectors = _normalise(model, examples)
        if key is None:
            return store.create(
                user, model.name, fingerprint, request.access, labels, vectors, check=check
            )
        store.update(user, key, labels, vectors, access=access, check=check)
        return key

    try:
        new_key = await _wait_for(context, store.training_thread, learn)
    finally:
        # If the client has left, or has waited too long, the fit of others can begin.
        is_abandoned.set()
    usage = {"total_tokens": examples.num_tokens}
    return json_response({"classifier_id": new_key, "num_samples": len(labels), "usage": usage})


async def list_classifiers(context: RequestContext) -> Response:
    """GET and POST /v1/classifiers: the caller's own classifiers."""
    store, user = _get_store(context), user_id(context.api_key.name)
    rows = await _wait_for(context, store.threads, lambda: store.list(user))
    served = {await _fingerprint(model) for model in context.service.models}
    for row in rows:
        fingerprint = row.pop("fingerprint")
        row |= {"is_active": fingerprint in served, "is_latest": True}
        row["metadata_"] = {"fingerprint": fingerprint}
    return json_response(rows)


async def delete_classifier(context: RequestContext) -> Response:
    """DELETE /v1/classifiers/{id}."""
    key = context.path_params["classifier_id"]
    store, user = _get_store(context), user_id(context.api_key.name)
    await _wait_for(context, store.threads, lambda: store.delete(user, key))
    return json_response({"classifier_id": key, "deleted": True})


def user_id(name: str) -> str:
    """The UUID for the name of an API key."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"polyvec:{name}"))


async def _wait_for(
    context: RequestContext, threads: Executor, call: Callable[[], Result]
) -> Result:
    """The result of a call of the store. Raises ApiError 429 if the API key has too many."""
    waiting, name = _get_store(context).waiting, context.api_key.name
    if waiting[name] >= MAX_CALLS_PER_KEY:
        raise ApiError(
            ErrorCode.RATE_CONCURRENCY_LIMIT_EXCEEDED,
            f"{MAX_CALLS_PER_KEY} calls of this API key already wait for the classifiers; try "
            "again in 1 s",
            headers={"Retry-After": "1"},
        )
    waiting[name] += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, call)
    finally:
        waiting[name] -= 1
        if not waiting[name]:
            del waiting[name]


async def _fingerprint(model: ServedModel) -> str:
    assert model.fingerprint is not None
    return await asyncio.shield(asyncio.wrap_future(model.fingerprint))


async def _find_model(context: RequestContext, stored: StoredClassifier) -> ServedModel:
    """The served model with the weights of a classifier, whatever its name. Raises ApiError 409."""
    for model in context.service.models:
        if await _fingerprint(model) == stored.fingerprint:
            return model
    raise ApiError(
        ErrorCode.CONFLICT_MODEL_CHANGED,
        f"the classifier was trained with other weights of {stored.model} than those that this "
        "server has, so its answers would be wrong; train a new classifier",
        param="classifier_id",
    )


def _normalise(model: ServedModel, encoded: Encoded) -> Float32[np.ndarray, "_ _"]:
    return truncate_means(encoded.dense, model.config.width)


def _describe(labels: list[str], probabilities: Float32[np.ndarray, " L"]) -> dict[str, Any]:
    """One prediction in the form of Jina's API."""
    best = int(probabilities.argmax())
    pairs = zip(labels, probabilities.tolist(), strict=True)
    return {
        "prediction": labels[best],
        "score": float(probabilities[best]),
        "predictions": [{"label": label, "score": score} for label, score in pairs],
    }


def _get_store(context: RequestContext) -> Classifiers:
    if context.service.classifiers is None:
        raise ApiError(
            ErrorCode.RESOURCE_NOT_FOUND,
            "this server stores no classifiers; start it with --classifiers FILE",
        )
    return context.service.classifiers


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/classify",
        answer=classify,
        summary="Classify texts, by the names of labels or by a trained classifier",
        reads=ClassifyRequest,
    ),
    Endpoint(
        method="POST",
        path="/v1/train",
        answer=train,
        summary="Train a classifier on labelled texts",
        reads=TrainRequest,
    ),
    *(
        Endpoint(
            method=method,
            path="/v1/classifiers",
            answer=list_classifiers,
            summary="List the trained classifiers of the API key",
        )
        for method in ("GET", "POST")
    ),
    Endpoint(
        method="DELETE",
        path="/v1/classifiers/{classifier_id}",
        answer=delete_classifier,
        summary="Delete a classifier",
    ),
]
