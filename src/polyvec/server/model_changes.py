"""Changes of the models while the server runs: a model is added, replaced or deleted.

1. A new model is loaded in a thread, while the models that are served go on. Its engines start, and
   it encodes one text with every task. If anything fails, nothing has changed.
2. It takes its place in one step. Requests that have begun keep the model that they have, and later
   requests get the new one.
3. The old model is stopped as soon as no request or batch job that may use it is in progress.

One change takes place at a time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from polyvec.server.api_keys import ApiKey
from polyvec.server.engine_process import EngineDied
from polyvec.server.errors import ApiError, ErrorCode, invalid_input, unavailable
from polyvec.server.metrics import log_event
from polyvec.server.model import ServedModel
from polyvec.server.serialise import truncate_means
from polyvec.server.service import RetiredModel, Service

Result = TypeVar("Result")

PROBE_TEXT = "Where does the cat sleep?"
"""The text that a model must be able to encode before it serves."""

MAX_NAME_CHARACTERS = 100

POLL_SECONDS = 0.1
"""Time between two looks whether an old model is still in use, and whether the server stops."""

RETIRED = "the model was replaced or deleted; try again"
"""The reason for the 503 of a request for which a model did not wait any longer."""


async def put_model(service: Service, name: str, path: str) -> bool:
    """Serve the model of a folder, or "mini", under a name. Returns whether the name is new.

    Returns when requests get the model. Aliases of a model that is replaced stay with the name.
    Raises ApiError, and changes nothing: 400 for a damaged model, 409 for the name of an alias or
    during another change, and 503 if the engines do not run.
    """
    async with _change(service):
        old = _find_own(service, name)
        if old is None:
            _check_name(name)
        model = await _unless_stopping(service, _load(service, path, name))
        is_served = False
        try:
            await _unless_stopping(service, _start(model, path))
            models = service.models_by_name
            _swap(service, {n: model if m is old else m for n, m in models.items()} | {name: model})
            is_served = True
        finally:
            if not is_served:
                await model.stop()
        fields = {"model": name, "folder": str(model.folder)}
        log_event("model added" if old is None else "model replaced", fields, level=logging.INFO)
        return old is None


async def delete_model(service: Service, name: str) -> None:
    """Serve a model and its aliases no longer.

    Raises ApiError 404 if there is no such model, and 409 for the default model, an alias, or
    during another change.
    """
    async with _change(service):
        old = _find_own(service, name)
        if old is None:
            known = ", ".join(model.name for model in service.models)
            message = f"there is no model {name[:MAX_NAME_CHARACTERS]}; this server has {known}"
            raise ApiError(ErrorCode.RESOURCE_NOT_FOUND, message, param="name")
        if old is service.models[0]:
            raise ApiError(
                ErrorCode.CONFLICT_MODEL_NAME,
                f"{name} is the default model, which requests without a model's name use, so it "
                "cannot be deleted; another folder can be put under its name",
                param="name",
            )
        _swap(
            service, {n: model for n, model in service.models_by_name.items() if model is not old}
        )
        log_event("model deleted", {"model": name}, level=logging.INFO)


async def stop_retired_models(service: Service) -> None:
    """Stop models that were replaced or deleted when nobody needs them, until cancelled."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        # Not a loop over the models here: its variable would keep the last one in memory.
        if service.retired:
            await _stop_unused(service)


async def _stop_unused(service: Service) -> None:
    for retired in list(service.retired):
        if not retired.users & service.users:
            await retired.model.stop()
            service.retired.remove(retired)
            log_event("model stopped", {"model": retired.model.name}, level=logging.INFO)
        elif asyncio.get_running_loop().time() > retired.stop_at:
            # Its threads go on, so that the requests get their answers, which are 503.
            await retired.model.scheduler.stop(RETIRED)


@asynccontextmanager
async def _change(service: Service) -> AsyncIterator[None]:
    """The time of one change. Raises ApiError 409 during another one."""
    _check_running(service)
    if service.changing.locked():
        raise ApiError(
            ErrorCode.CONFLICT_CHANGE_IN_PROGRESS,
            "another change of the models is in progress; try again when it has ended",
        )
    async with service.changing:
        yield


def _check_running(service: Service) -> None:
    if service.load.is_stopping:
        raise unavailable("the server is shutting down")


async def _unless_stopping(service: Service, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a part of a change. Raises ApiError 503 if the server stops before."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=POLL_SECONDS)
            _check_running(service)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _find_own(service: Service, name: str) -> ServedModel | None:
    """The model whose own name this is; None if the name is free. Raises ApiError 409."""
    model = service.models_by_name.get(name)
    if model is not None and model.name != name:
        raise ApiError(
            ErrorCode.CONFLICT_MODEL_NAME,
            f"{name} is an alias of the model {model.name}; use that name",
            param="name",
        )
    return model


def _check_name(name: str) -> None:
    """Raise ApiError 400 for the name of a new model that would be hard to use."""
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable() or name != name.strip():
        raise invalid_input(
            f"the name of a model has at most {MAX_NAME_CHARACTERS} printable characters, and "
            "neither begins nor ends with a space",
            "name",
        )


async def _load(service: Service, path: str, name: str) -> ServedModel:
    """A model without its engines. Raises ApiError 400 that names what is wrong in its folder."""
    load = service.load_model
    assert load is not None

    def load_folder() -> ServedModel:
        # A name of a model on the hub would be downloaded.
        if path != "mini" and not Path(path).is_dir():
            raise ValueError(f"there is no folder {path} on the server's machine")
        return load(path, name)

    # Not in the threads of requests: it takes seconds.
    thread = ThreadPoolExecutor(1, thread_name_prefix="load-model")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, load_folder)
    except (ValueError, OSError) as error:
        raise invalid_input(str(error), "path") from None
    finally:
        thread.shutdown(wait=False)


async def _start(model: ServedModel, path: str) -> None:
    """Start a model's engines, and check that it works. Raises ApiError 400 or 503."""
    model.scheduler.start()
    try:
        await model.scheduler.wait_until_started()
        if model.fingerprint is not None:
            await asyncio.wrap_future(model.fingerprint)
    except EngineDied as error:
        raise unavailable(f"no engine could be started for {path}: {error}") from None
    except OSError as error:
        raise invalid_input(f"{path} cannot be read: {error}", "path") from None
    await _probe(model, path)


async def _probe(model: ServedModel, path: str) -> None:
    """Encode a text with every task. Raises ApiError 400 or 503 if an output is not usable."""
    anyone = ApiKey("probe")
    for task in (None, *(task.name for task in model.config.tasks)):
        choice = model.choose_task(task)
        problem = f"{path} fails on a short text with {f'the task {task}' if task else 'no task'}"
        try:
            encoded = await model.encode([PROBE_TEXT], choice, model.outputs, anyone)
            vectors = truncate_means(encoded.dense, model.config.width)
        except ApiError as error:
            # What follows is what a client can do.
            reason = error.message.partition(";")[0]
            if error.status == 503:
                raise unavailable(f"{problem}: {reason}") from None
            raise invalid_input(f"{problem}: {reason}", "path") from None
        if vectors.shape != (1, model.config.width):
            raise invalid_input(f"{problem}: its vectors have the wrong size", "path")


def _swap(service: Service, models_by_name: Mapping[str, ServedModel]) -> None:
    """Serve these models from now on, and retire the others. No request sees it half done."""
    before = service.models
    service.models_by_name.clear()
    service.models_by_name.update(models_by_name)
    stop_at = asyncio.get_running_loop().time() + service.limits.retire_seconds
    users = frozenset(service.users)
    after = service.models
    service.retired.extend(
        RetiredModel(model, users, stop_at) for model in before if model not in after
    )
