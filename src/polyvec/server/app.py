"""The server as an ASGI application: it gives each request to its endpoint, and answers errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from polyvec.server.cors import allow_origins
from polyvec.server.errors import ApiError, ErrorCode
from polyvec.server.json_bounds import is_small
from polyvec.server.log_privacy import make_route_finder
from polyvec.server.middleware import RequestMiddleware
from polyvec.server.service import (
    Endpoint,
    RequestContext,
    Service,
    find_error_form,
    json_response,
)
from polyvec.server.supervision import start_supervised, stop_supervised
from polyvec.server.wire import read_body
from polyvec.server.worker_threads import CLIENT

BackgroundTask = Callable[[Service], Coroutine[Any, Any, None]]
"""A coroutine function that runs as long as the server does."""

HTTP_ERROR_CODES = {404: ErrorCode.RESOURCE_NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}
"""The codes of the errors that the router raises."""


def make_app(service: Service, background: Sequence[BackgroundTask] = ()) -> ASGIApp:
    """The application. Its lifespan starts and stops the engines and the background tasks."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # A loop's variable would keep the last model in memory when it has been replaced.
        for scheduler in [model.scheduler for model in service.models]:
            scheduler.start()
        tasks = [start_supervised(run.__name__, partial(run, service)) for run in background]
        try:
            yield
        finally:
            await stop_supervised(tasks)
            if service.batch_jobs is not None:
                service.batch_jobs.close()
            # A change of the models that was cancelled may still be stopping its engines.
            async with service.changing:
                for model in [*service.models, *(one.model for one in service.retired)]:
                    await model.stop()
            service.threads.stop()
            if service.traces is not None:
                await asyncio.to_thread(service.traces.stop)

    find_form = partial(find_error_form, service.endpoints)

    def answer_error(request: Request, error: ApiError) -> Response:
        form = find_form(request.url.path, request.method)
        body = form.body(error, request.scope["state"]["request_id"])
        response = json_response(body, error.status)
        response.headers.update(error.headers)
        return response

    async def answer_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer_error(request, error)

    async def answer_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path[:80]
        message = f"there is no route {request.method} {path}; GET /openapi.json lists all routes"
        code = HTTP_ERROR_CODES.get(error.status_code, ErrorCode.INPUT_INVALID)
        return answer_error(request, ApiError(code, message, headers=dict(error.headers or {})))

    async def answer_unexpected_error(request: Request, error: Exception) -> Response:
        # The traceback goes to the log; the client gets no details.
        message = "An unexpected error occurred"
        return answer_error(request, ApiError(ErrorCode.INTERNAL_ERROR, message))

    middleware = [
        Middleware(
            RequestMiddleware,
            limits=service.limits,
            api_keys=service.api_keys,
            metrics=service.metrics,
            load=service.load,
            find_error_form=find_form,
            find_route=make_route_finder(endpoint.path for endpoint in service.endpoints),
        )
    ]
    if service.cors:
        middleware.insert(0, allow_origins(service.cors))
    middleware.insert(0, Middleware(ignore_trailing_slash))
    if service.traces is not None:
        middleware.append(Middleware(service.traces.wrap))
    app = Starlette(
        routes=[
            Route(endpoint.path, _make_route(service, endpoint), methods=[endpoint.method])
            for endpoint in service.endpoints
        ],
        middleware=middleware,
        exception_handlers={
            ApiError: answer_api_error,
            HTTPException: answer_http_error,
            Exception: answer_unexpected_error,
        },
        lifespan=lifespan,
    )
    # A redirect needs the address that the client used, which a server behind a proxy cannot know.
    app.router.redirect_slashes = False
    return app


def ignore_trailing_slash(app: ASGIApp) -> ASGIApp:
    """Middleware that lets a path with one slash at its end mean the path without it."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.endswith("/") and path != "/" and not path.endswith("//"):
            scope = {**scope, "path": path[:-1]}
        await app(scope, receive, send)

    return route


def _make_route(service: Service, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        state = request.scope["state"]
        is_anyone = state["api_key"] is service.api_keys.anyone
        CLIENT.set(request.scope.get("client") if is_anyone else state["api_key"].name)
        try:
            async with asyncio.timeout(service.limits.request_seconds):
                body = None
                if endpoint.reads is not None:
                    content = await request.body()
                    read = partial(read_body, endpoint.reads, content, service.limits)
                    body = read() if is_small(content) else await service.threads.run(read)
                context = RequestContext(
                    service,
                    state["api_key"],
                    body,
                    request.path_params,
                    request.query_params,
                    state,
                )
                with service.hold_models():
                    return await endpoint.answer(context)
        except TimeoutError:
            raise ApiError(
                ErrorCode.SERVICE_TIMEOUT,
                f"Request timed out after {service.limits.request_seconds:g} seconds",
            ) from None

    return route
