"""Middleware that every request passes first: request id, API key, limits, body, and log.

If the server has API keys, every path needs one, known or unknown, except `PUBLIC_PATHS`.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyvec.server.api_keys import ApiKey, ApiKeys
from polyvec.server.errors import ApiError, ErrorCode, ErrorForm, unavailable
from polyvec.server.limits import Limits
from polyvec.server.log_privacy import loggable_id
from polyvec.server.metrics import Metrics, log_event
from polyvec.server.serialise import to_json

READING_METHODS = frozenset({"GET", "HEAD"})

PUBLIC_PATHS = frozenset({"/", "/live", "/ready", "/health", "/ping"})
"""Paths that can be read without an API key: the playground, which holds no secret, and the
probes."""

ALWAYS_SERVED_PATHS = PUBLIC_PATHS | {"/metrics", "/openapi.json"}
"""Paths that are served while the server drains or is overloaded, and that no quota counts."""

REQUEST_ID_PATTERN = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
"""A client's own request id is used if it matches. It grants access to nothing."""

CLIENT_CLOSED_STATUS = 499
"""The status in the log of a request whose client closed the connection."""

DISCARD_FACTOR = 8
"""A body of up to this many times the limit is received and discarded before it is refused."""


@dataclass(slots=True, kw_only=True)
class ServerLoad:
    """The requests in progress."""

    is_stopping: bool = False
    """Whether the server was told to stop. It is no longer ready, but still answers requests."""
    is_draining: bool = False
    """Whether new requests are refused, since the server is about to end."""
    running: int = 0
    """Number of requests."""
    num_bytes: int = 0
    """Total size of the parts of their bodies that have arrived, and of their answers."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no request is in progress."""


class RequestMiddleware:
    """ASGI middleware around the routes."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        api_keys: ApiKeys,
        metrics: Metrics,
        load: ServerLoad,
        find_error_form: Callable[[str, str], ErrorForm],
        find_route: Callable[[str], str],
    ) -> None:
        """`find_error_form` returns the form of errors at a path, for a method.

        `find_route` returns the template of its route, which the log and the metrics name.
        """
        self._app = app
        self._limits = limits
        self._api_keys = api_keys
        self._metrics = metrics
        self._load = load
        self._find_error_form = find_error_form
        self._find_route = find_route
        load.idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            # The server has no web sockets; lifespan events pass.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = {name.lower(): value for name, value in scope["headers"]}
        proposed_id = headers.get(b"x-request-id", b"").decode("latin-1")
        is_valid_id = REQUEST_ID_PATTERN.fullmatch(proposed_id)
        request_id = proposed_id if is_valid_id else secrets.token_hex(8)
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(
            request_id=request_id,
            log_id=loggable_id(request_id, self._api_keys) if is_valid_id else request_id,
            api_key=self._api_keys.anyone,
            route=self._find_route(scope["path"]),
        )
        status = CLIENT_CLOSED_STATUS
        held = 0

        def hold(num_bytes: int) -> None:
            nonlocal held
            held += num_bytes
            load.num_bytes += num_bytes

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = {"X-Request-Id": request_id, **state["api_key"].headers()}
                if load.is_stopping:
                    # The client's next connection goes to another server.
                    extra["Connection"] = "close"
                encoded = [(k.lower().encode(), v.encode("latin-1")) for k, v in extra.items()]
                message["headers"] = [*message.get("headers", []), *encoded]
            # This returns when most of the answer has left.
            hold(len(message.get("body", b"")))
            await send(message)

        load, admitted = self._load, None
        load.running += 1
        load.idle.clear()
        self._metrics.running.set(load.running)
        try:
            admitted = self._admit(scope, headers)
            body = await self._receive_body(headers, receive, hold)
            await self._run(scope, body, receive, send_with_headers)
        except ApiError as error:
            form = self._find_error_form(scope["path"], scope["method"])
            await send_error(error, form.body(error, request_id), send_with_headers)
        finally:
            if admitted is not None:
                admitted.running -= 1
            load.num_bytes -= held
            load.running -= 1
            if not load.running:
                load.idle.set()
            seconds = time.perf_counter() - started
            self._metrics.running.set(load.running)
            self._metrics.requests.labels(state["route"], status).inc()
            self._metrics.request.observe(seconds)
            entry = {
                "method": scope["method"],
                "path": state["route"],
                "status": status,
                "ms": round(seconds * 1000, 2),
                "request_id": state["log_id"],
                "client": state["api_key"].name,
                **state.get("usage", {}),
            }
            log_event("request", entry, level=logging.INFO)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> ApiKey | None:
        """The request's key, with the request counted; None if it is not. Raises ApiError."""
        # POST / embeds texts, so it is no public path.
        path = scope["path"] if scope["method"] in READING_METHODS else None
        if path not in PUBLIC_PATHS:
            scope["state"]["api_key"] = self._api_keys.authenticate(headers)
        if path in ALWAYS_SERVED_PATHS:
            return None
        if self._load.is_draining:
            raise unavailable("the server is shutting down")
        is_full = self._load.running > self._limits.requests
        if is_full or self._load.num_bytes > self._limits.inflight_bytes:
            raise too_busy()
        api_key = scope["state"]["api_key"]
        api_key.admit()
        api_key.running += 1
        return api_key

    async def _receive_body(
        self, headers: dict[bytes, bytes], receive: Receive, hold: Callable[[int], None]
    ) -> bytes:
        """The whole body, of which `hold` counts every part.

        Raises ApiError 413 if the body is too large, 429 if the server holds too many bytes, and
        408 if the body comes too slowly.
        """
        media_type = headers.get(b"content-type", b"application/json").split(b";")[0].strip()
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if has_body and media_type.lower() != b"application/json":
            raise ApiError(
                ErrorCode.INPUT_INVALID_TYPE, "send the body with Content-Type: application/json"
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(ErrorCode.INPUT_INVALID_TYPE, "send the body without Content-Encoding")
        limit = self._limits.body_bytes
        too_large = ApiError(
            ErrorCode.INPUT_TOO_LARGE,
            f"the body has more than {limit:,} bytes; send fewer texts at once",
            headers={"Connection": "close"},
        )
        # A client that waits for 100 (Continue) sees the answer before it sends the body.
        announced = int(headers.get(b"content-length", b"0"))
        if announced > (limit if b"expect" in headers else DISCARD_FACTOR * limit):
            raise too_large
        parts: list[bytes] = []
        size = 0
        error: ApiError | None = None
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(ErrorCode.INPUT_INVALID, "the body ended too early")
                    part = message.get("body", b"")
                    size += len(part)
                    if error is None:
                        parts.append(part)
                        hold(len(part))
                        if size > limit:
                            error = too_large
                        elif self._load.num_bytes > self._limits.inflight_bytes:
                            error = too_busy()
                        if error is not None:
                            hold(-sum(map(len, parts)))
                            parts.clear()
                    # The rest of a body that is refused is received and discarded, since clients
                    # that are still writing do not see an answer.
                    if not message.get("more_body") or size > DISCARD_FACTOR * limit:
                        break
        except TimeoutError:
            raise ApiError(
                ErrorCode.REQUEST_TIMEOUT,
                f"the request did not arrive within {self._limits.read_seconds:g} s",
                headers={"Connection": "close"},
            ) from None
        if error is not None:
            raise error
        return b"".join(parts)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let a route answer; cancel its work if the client disconnects first."""

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        route = asyncio.ensure_future(self._app(scope, replay, send))
        disconnect = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({route, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            disconnect.cancel()
            if not route.done():
                route.cancel()
        try:
            await route
        except asyncio.CancelledError:
            if not route.cancelled():
                raise


def too_busy() -> ApiError:
    """429: too many requests, or too many bytes of them, are in progress."""
    return ApiError(
        ErrorCode.RATE_CONCURRENCY_LIMIT_EXCEEDED,
        "the server has too many requests in progress; try again in 1 s",
        headers={"Retry-After": "1"},
    )


async def send_error(error: ApiError, body: dict[str, Any], send: Send) -> None:
    """Answer with an error."""
    content = to_json(body)
    headers = {"content-type": "application/json", "content-length": str(len(content))}
    headers |= {name.lower(): value for name, value in error.headers.items()}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
