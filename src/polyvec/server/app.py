"""The server as an ASGI application: routes, and how a request becomes a call of one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from polyvec.server.errors import ApiError, error_body
from polyvec.server.metrics import Metrics
from polyvec.server.middleware import Gate, Traffic, dialect_of
from polyvec.server.model import Served
from polyvec.server.quotas import Client, Clients, Limits
from polyvec.server.serialise import dump
from polyvec.server.stores.batch_jobs import Batches
from polyvec.server.stores.classifiers import Classifiers
from polyvec.server.wire import Wire, read_json, validate

if TYPE_CHECKING:
    from polyvec.server.tracing import Traces

INLINE_NUMBERS = 4_096
"""Answers with more numbers are made in a thread: the event loop stays free."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """All that routes need: the models and the server's state."""

    models: dict[str, Served]
    """By every name that requests may use; the first one is the default."""
    limits: Limits = field(default_factory=Limits)
    clients: Clients = field(default_factory=Clients)
    metrics: Metrics = field(default_factory=Metrics)
    traffic: Traffic = field(default_factory=Traffic)
    classifiers: Classifiers | None = None
    """Where trained classifiers are kept, if anywhere."""
    batches: Batches | None = None
    """Where batch jobs are kept, if anywhere."""
    traces: "Traces | None" = None
    """Where spans of requests go, if anywhere."""
    cors: Sequence[str] = ()
    """Origins whose pages may call the API; none unless named."""

    @property
    def served(self) -> list[Served]:
        """Every model once."""
        return list(dict.fromkeys(self.models.values()))

    def find(self, name: str) -> Served:
        """The model of a name. Raises ApiError 400."""
        model = self.models.get(name) or self.models.get(name.rsplit("/", 1)[-1])
        if model is None:
            known = ", ".join(self.models)
            raise ApiError(
                400,
                "INPUT_MODEL_NOT_FOUND",
                f"Model '{name[:80]}' not found; this server has {known}",
                param="model",
            )
        return model

    def state(self) -> tuple[bool, str]:
        """Whether requests can be answered, and in a word why not."""
        if self.traffic.is_draining:
            return False, "draining"
        missing = [model.name for model in self.served if not model.scheduler.is_ready]
        self.metrics.ready.set(not missing)
        return not missing, "ok" if not missing else "engine not running: " + ", ".join(missing)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, past the gate."""

    service: Service
    client: Client
    body: Any
    """The validated request, or None where the endpoint reads none."""
    path: Mapping[str, str]
    """The parameters in the path."""
    query: Mapping[str, str]
    """The parameters behind the path."""
    state: dict[str, Any]
    """What the access log will say."""

    async def make(self, write: Callable[[], Result], numbers: int) -> Result:
        """What `write` returns, from a thread if it has many numbers to write."""
        with self.service.metrics.timed("serialise", self.service.metrics.serialise):
            return write() if numbers <= INLINE_NUMBERS else await asyncio.to_thread(write)

    def note(self, *, texts: int, tokens: int) -> None:
        """Tell the access log how much work this was."""
        self.state["sizes"] = {"texts": texts, "tokens": tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route, and what the OpenAPI document says of it."""

    method: str
    path: str
    answer: Callable[[Call], Awaitable[Response]]
    summary: str
    reads: type[Wire] | None = None
    writes: type[BaseModel] | None = None
    """None where the answer is not JSON."""
    query: Mapping[str, Any] = field(default_factory=dict)
    """Parameters behind the path, by their schemas."""


def json_response(value: Any, status: int = 200) -> Response:
    """A small answer as JSON."""
    return Response(dump(value), status, media_type="application/json")


def make_app(
    service: Service,
    endpoints: Sequence[Endpoint],
    background: Sequence[Callable[[Service], Coroutine[Any, Any, None]]] = (),
) -> ASGIApp:
    """The application. Its lifespan starts and stops the engines, and what runs beside them."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        for model in service.served:
            model.scheduler.start()
        tasks = [asyncio.create_task(run(service)) for run in background]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for model in service.served:
                await model.stop()
            if service.traces is not None:
                await asyncio.to_thread(service.traces.stop)

    routes = [
        Route(endpoint.path, _route(service, endpoint), methods=[endpoint.method])
        for endpoint in endpoints
    ]
    gate = Middleware(
        Gate,
        limits=service.limits,
        clients=service.clients,
        metrics=service.metrics,
        traffic=service.traffic,
    )
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(service.cors),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type"],
    )
    middleware = [cors, gate] if service.cors else [gate]
    if service.traces is not None:
        middleware.append(Middleware(service.traces.wrap))
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_error,
            Exception: _answer_unexpected,
        },
        lifespan=lifespan,
    )


def _route(service: Service, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        state = request.scope["state"]
        state["route"] = endpoint.path
        body = None
        if endpoint.reads is not None:
            body = validate(endpoint.reads, read_json(await request.body()))
        call = Call(
            service, state["client"], body, request.path_params, request.query_params, state
        )
        try:
            async with asyncio.timeout(service.limits.request_seconds):
                return await endpoint.answer(call)
        except TimeoutError:
            raise ApiError(
                504,
                "SERVICE_TIMEOUT",
                f"Request timed out after {service.limits.request_seconds:g} seconds",
            ) from None

    return route


def _error_response(request: Request, error: ApiError) -> Response:
    dialect = dialect_of(request.url.path)
    body = error_body(error, request.scope["state"]["request_id"], dialect)
    response = json_response(body, error.status)
    response.headers.update(error.headers)
    return response


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(request, error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    codes = {404: "RESOURCE_NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}
    sentence = f"there is no {request.method} {path}; GET /openapi.json lists what there is"
    headers = dict(error.headers or {})
    code = codes.get(error.status_code, "INPUT_INVALID")
    return _error_response(request, ApiError(error.status_code, code, sentence, headers=headers))


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    # The traceback goes to the log; the client learns nothing of our insides.
    return _error_response(request, ApiError(500, "INTERNAL_ERROR", "An unexpected error occurred"))


def read_page() -> bytes:
    """The playground."""
    return (Path(__file__).parent / "playground.html").read_bytes()
