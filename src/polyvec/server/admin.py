"""The operator's routes, which change models and keys while the server runs.

They have an address of their own, and no API keys: whoever can connect to it controls what the
server serves. Therefore it is an address of this machine only, and requests of web pages are
refused.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from polyvec.server.api_keys import ApiKey, ApiKeys
from polyvec.server.app import make_app
from polyvec.server.errors import DEFAULT_ERROR_FORM, ApiError, ErrorCode, invalid_input
from polyvec.server.key_reload import replace_keys
from polyvec.server.metrics import Metrics
from polyvec.server.middleware import ServerLoad, send_error
from polyvec.server.model import ServedModel
from polyvec.server.model_changes import delete_model, put_model
from polyvec.server.routes import health
from polyvec.server.service import Endpoint, RequestContext, Service, json_response
from polyvec.server.wire import StrictModel

ADMIN_HOST = "127.0.0.1"

HOST_NAMES = (ADMIN_HOST.encode(), b"localhost")
"""Names of this machine that a request may have in its Host header."""

CHANGE_SECONDS = 600.0
"""Time limit for a change: loading a model, starting its engines, and trying it."""


class PutModelRequest(StrictModel):
    """The model to serve."""

    path: Annotated[str, Field(min_length=1, max_length=4_096)]
    """Its folder on the server's machine, or "mini" for the bundled model."""


def make_admin_app(service: Service) -> ASGIApp:
    """The application of the operator's routes. Its requests do not count as those of clients."""
    operator = ApiKey("operator", sees_all_usage=True)
    return refuse_web_pages(
        make_app(
            replace(
                service,
                endpoints=make_endpoints(service),
                limits=replace(service.limits, request_seconds=CHANGE_SECONDS),
                api_keys=ApiKeys(anyone=operator),
                metrics=Metrics(),
                load=ServerLoad(),
                traces=None,
                cors=(),
            )
        )
    )


def make_endpoints(service: Service) -> Sequence[Endpoint]:
    """The operator's routes for a service."""

    async def list_models(context: RequestContext) -> Response:
        return json_response(
            {
                "models": [describe_model(service, model) for model in service.models],
                "stopping": [retired.model.name for retired in service.retired],
            }
        )

    async def put(context: RequestContext) -> Response:
        request: PutModelRequest = context.body
        name = context.path_params["name"]
        is_new = await put_model(service, name, request.path)
        model = service.models_by_name[name]
        return json_response(describe_model(service, model), 201 if is_new else 200)

    async def delete(context: RequestContext) -> Response:
        name = context.path_params["name"]
        await delete_model(service, name)
        return json_response({"name": name, "deleted": True})

    async def metrics(context: RequestContext) -> Response:
        return await health.metrics(replace(context, service=service))

    async def reload_keys(context: RequestContext) -> Response:
        reason = await replace_keys(service.api_keys)
        if reason is not None:
            raise invalid_input(f"the API keys stay as they are: {reason}", None)
        return json_response({"keys": [key.name for key in service.api_keys.known]})

    return [
        Endpoint(method="GET", path="/models", answer=list_models, summary="List the models"),
        Endpoint(
            method="PUT",
            path="/models/{name}",
            answer=put,
            summary="Add a model, or replace the model of this name",
            reads=PutModelRequest,
        ),
        Endpoint(method="DELETE", path="/models/{name}", answer=delete, summary="Delete a model"),
        Endpoint(method="GET", path="/metrics", answer=metrics, summary="Prometheus metrics"),
        Endpoint(
            method="POST", path="/keys/reload", answer=reload_keys, summary="Read the keys again"
        ),
        Endpoint(
            method="GET", path="/openapi.json", answer=health.document, summary="OpenAPI document"
        ),
    ]


def describe_model(service: Service, model: ServedModel) -> dict[str, Any]:
    """A model as its operator sees it."""
    names = [name for name, other in service.models_by_name.items() if other is model]
    fingerprint, future = None, model.fingerprint
    if future is not None and future.done() and future.exception() is None:
        fingerprint = future.result()
    return {
        "name": model.name,
        "aliases": [name for name in names if name != model.name],
        "is_default": model is service.models[0],
        "folder": str(model.folder),
        "fingerprint": fingerprint,
        "tasks": [task.name for task in model.config.tasks],
        "created": model.created,
        "engines": len(model.scheduler.engines),
        "engines_running": len(model.scheduler.alive),
    }


def refuse_web_pages(app: ASGIApp) -> ASGIApp:
    """Middleware that refuses requests which a web page may have sent through a browser here.

    A page may give its own name the address of this machine (DNS rebinding), so the name that the
    request is for must be that of this machine, too.
    """

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").partition(b":")[0].lower()
        if host in HOST_NAMES and b"origin" not in headers:
            await app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        error = ApiError(
            ErrorCode.INPUT_INVALID,
            "this address is for programs of this machine and not for web pages; send the "
            f"request to http://{ADMIN_HOST}, without an Origin header",
            headers={"X-Request-Id": request_id},
        )
        await send_error(error, DEFAULT_ERROR_FORM.body(error, request_id), send)

    return check
