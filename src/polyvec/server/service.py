"""The values that routes work with: the service, the context of one request, and an endpoint."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from polyvec.server.api_keys import ApiKey, ApiKeys
from polyvec.server.errors import DEFAULT_ERROR_FORM, ApiError, ErrorCode, ErrorForm
from polyvec.server.fair_queue import TrafficClass
from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics
from polyvec.server.middleware import ServerLoad
from polyvec.server.model import ServedModel
from polyvec.server.serialise import to_json
from polyvec.server.stores.batch_jobs import BatchJobs
from polyvec.server.stores.classifiers import Classifiers
from polyvec.server.wire import StrictModel
from polyvec.server.worker_threads import FairThreads

if TYPE_CHECKING:
    from polyvec.server.tracing import Traces

MAX_INLINE_NUMBERS = 4_096
"""An answer with more numbers is serialised in a thread, so that the event loop stays free."""

LONG_THREADS = 2
"""Threads that parse long bodies and serialise long answers. Small requests do not use them."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class RetiredModel:
    """A model that new requests do not use any more. It is stopped when nobody needs it."""

    model: ServedModel
    users: frozenset[object]
    """Those who held the models when it was retired."""
    stop_at: float
    """Time of the event loop at which its engines are stopped in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The models and the state of a server: everything that routes need."""

    models_by_name: dict[str, ServedModel]
    """Models by every name that requests may use; the first one is the default."""
    endpoints: Sequence["Endpoint"]
    """All routes."""
    limits: Limits = field(default_factory=Limits)
    api_keys: ApiKeys = field(default_factory=ApiKeys)
    metrics: Metrics = field(default_factory=Metrics)
    load: ServerLoad = field(default_factory=ServerLoad)
    threads: FairThreads = field(default_factory=lambda: FairThreads(LONG_THREADS, "long"))
    """Threads for long bodies and answers."""
    classifiers: Classifiers | None = None
    """Store of trained classifiers, if the server has one."""
    batch_jobs: BatchJobs | None = None
    """Store of batch jobs, if the server has one."""
    traces: "Traces | None" = None
    """Exporter of the spans of requests, if tracing is on."""
    cors: Sequence[str] = ()
    """Origins whose pages may call the API; none by default."""
    load_model: Callable[[str, str], ServedModel] | None = None
    """Loads a further model, from a folder and for a name, with the options of the others."""
    users: set[object] = field(default_factory=set)
    """Marks of the requests and batch jobs that hold the models."""
    retired: list[RetiredModel] = field(default_factory=list)
    """Models that were replaced or deleted, and are not stopped yet."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the models change."""

    @property
    def models(self) -> list[ServedModel]:
        """Every model once, whatever the number of its names."""
        return list(dict.fromkeys(self.models_by_name.values()))

    def find_model(self, name: str) -> ServedModel | None:
        """The model of a name, which may begin with that of an organisation; None if unknown."""
        return self.models_by_name.get(name) or self.models_by_name.get(name.rsplit("/", 1)[-1])

    def choose_model(self, name: str | None) -> ServedModel:
        """The model of a name, or the first model for None. Raises ApiError 400."""
        if name is None:
            return self.models[0]
        model = self.find_model(name)
        if model is None:
            known = ", ".join(self.models_by_name)
            raise ApiError(
                ErrorCode.INPUT_MODEL_NOT_FOUND,
                f"Model '{name[:80]}' not found; this server has {known}",
                param="model",
            )
        return model

    @contextmanager
    def hold_models(self) -> Iterator[None]:
        """Keep the models of this moment running, also if they are replaced or deleted.

        The limit is `limits.retire_seconds` after that change.
        """
        mark = object()
        self.users.add(mark)
        try:
            yield
        finally:
            self.users.remove(mark)

    def check_ready(self) -> tuple[bool, str]:
        """Whether the server can answer requests, and a word that says why it cannot."""
        if self.load.is_stopping:
            return False, "shutting down"
        missing = [model.name for model in self.models if not model.scheduler.is_ready]
        self.metrics.ready.set(not missing)
        return not missing, "ok" if not missing else "engine not running: " + ", ".join(missing)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request that the middleware has admitted."""

    service: Service
    api_key: ApiKey
    body: Any
    """The validated body; None if the endpoint reads none."""
    path_params: Mapping[str, str]
    query_params: Mapping[str, str]
    state: dict[str, Any]
    """State of the request that the middleware writes to the access log."""
    traffic: TrafficClass = TrafficClass.INTERACTIVE
    """Which of the requests that wait run first, and which share batches."""

    async def serialise(self, write: Callable[[], Result], num_numbers: int) -> Result:
        """The result of `write`, which runs in a thread if it has many numbers to write."""
        with self.service.metrics.timed("serialise", self.service.metrics.serialise):
            if num_numbers <= MAX_INLINE_NUMBERS:
                return write()
            return await self.service.threads.run(write)

    def record_usage(self, *, texts: int, tokens: int) -> None:
        """Record the size of the request for the access log and the trace."""
        self.state["usage"] = {"texts": texts, "tokens": tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route, and its description in the OpenAPI document."""

    method: str
    path: str
    answer: Callable[[RequestContext], Awaitable[Response]]
    summary: str
    reads: type[StrictModel] | None = None
    """Schema of the body; None if the endpoint reads none."""
    writes: type[BaseModel] | None = None
    """Schema of the answer; None if it is not described, or is not JSON."""
    query: Mapping[str, Any] = field(default_factory=dict)
    """JSON schemas of the query parameters, by name."""
    error_form: ErrorForm = DEFAULT_ERROR_FORM
    """Form in which the clients of this endpoint read errors."""


class SlicedResponse(Response):
    """A long answer in JSON that is sent slice by slice, so that nothing copies all of it.

    It waits for the client to receive a slice before it sends the next.
    """

    media_type = "application/json"

    def __init__(self, slices: Sequence[bytes]) -> None:
        """`slices` are the parts of the body."""
        self._slices = slices
        super().__init__(headers={"content-length": str(sum(map(len, slices)))})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for part in self._slices:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_response(value: Any, status: int = 200) -> Response:
    """A small answer as JSON."""
    return Response(to_json(value), status, media_type="application/json")


def find_error_form(endpoints: Sequence[Endpoint], path: str, method: str) -> ErrorForm:
    """The form of errors at a path: that of its endpoint, or of the nearest one.

    A path without an endpoint has the form of the first endpoint with the same first segment.
    """
    at_path = [endpoint for endpoint in endpoints if endpoint.path == path]
    for endpoint in at_path:
        if endpoint.method == method:
            return endpoint.error_form
    if at_path:
        return at_path[0].error_form
    segment = path.split("/")[:2]
    for endpoint in endpoints:
        if endpoint.path.split("/")[:2] == segment:
            return endpoint.error_form
    return DEFAULT_ERROR_FORM
