"""What every request passes before a route sees it: identity, access, size, time, and the log.

Every route is closed to those without a key, known and unknown paths alike, but for `OPEN`.
"""

import asyncio
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyvec.server.errors import ApiError, error_body, unavailable
from polyvec.server.metrics import Metrics, log
from polyvec.server.quotas import Client, Clients, Limits
from polyvec.server.serialise import dump

OPEN = frozenset({"/", "/live", "/ready", "/health"})
"""Routes that need no key: the page, which holds no secret, and the probes."""

UNLIMITED = OPEN | {"/metrics", "/openapi.json"}
"""Routes that work while the server drains or is full."""

REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
"""A client's own id is passed on if it looks so. It is never a key to anything."""

GONE = 499
"""The status in the log of a request whose client went away."""


@dataclass(slots=True, kw_only=True)
class Traffic:
    """What is going on in the server."""

    is_draining: bool = False
    running: int = 0
    """Requests in work."""
    num_bytes: int = 0
    """Bytes of their bodies."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no request is in work."""


class Gate:
    """ASGI middleware around the routes."""

    def __init__(
        self, app: ASGIApp, limits: Limits, clients: Clients, metrics: Metrics, traffic: Traffic
    ) -> None:
        self._app = app
        self._limits = limits
        self._clients = clients
        self._metrics = metrics
        self._traffic = traffic
        traffic.idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            # There are no web sockets here; lifespan events pass.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = {name.lower(): value for name, value in scope["headers"]}
        wanted = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = wanted if REQUEST_ID.fullmatch(wanted) else secrets.token_hex(8)
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(request_id=request_id, client=self._clients.anyone, route="none")
        status = GONE

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = {"X-Request-Id": request_id, **state["client"].headers()}
                encoded = [(k.lower().encode(), v.encode("latin-1")) for k, v in extra.items()]
                message["headers"] = [*message.get("headers", []), *encoded]
            await send(message)

        traffic, client = self._traffic, None
        traffic.running += 1
        traffic.idle.clear()
        self._metrics.running.set(traffic.running)
        try:
            client = self._admit(scope, headers)
            body = await self._read(headers, receive)
            traffic.num_bytes += len(body)
            try:
                await self._run(scope, body, receive, answer)
            finally:
                traffic.num_bytes -= len(body)
        except ApiError as error:
            await send_error(error, request_id, dialect_of(scope["path"]), answer)
        finally:
            if client is not None:
                client.running -= 1
            traffic.running -= 1
            if not traffic.running:
                traffic.idle.set()
            seconds = time.perf_counter() - began
            self._metrics.running.set(traffic.running)
            self._metrics.requests.labels(state["route"], status).inc()
            self._metrics.request.observe(seconds)
            line = {
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(seconds * 1000, 2),
                "request_id": request_id,
                "client": state["client"].name,
                **state.get("sizes", {}),
            }
            log("request", line, level=logging.INFO)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> Client | None:
        """The client, counted as running; None where nobody is counted. Raises ApiError."""
        path = scope["path"]
        if path not in OPEN:
            given = headers.get(b"authorization")
            client = self._clients.find(None if given is None else given.decode("latin-1"))
            scope["state"]["client"] = client
        if path in UNLIMITED:
            return None
        if self._traffic.is_draining:
            raise unavailable("the server is about to stop")
        full = self._traffic.running > self._limits.requests
        if full or self._traffic.num_bytes > self._limits.inflight_bytes:
            raise ApiError(
                429,
                "RATE_CONCURRENCY_LIMIT_EXCEEDED",
                "the server has too many requests in work; try again in 1 s",
                headers={"Retry-After": "1"},
            )
        client = scope["state"]["client"]
        client.admit()
        client.running += 1
        return client

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body. Raises ApiError 413 if it is too large, 408 if it comes too slowly."""
        kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if has_body and kind != b"application/json":
            raise ApiError(
                415, "INPUT_INVALID_TYPE", "send the body with Content-Type: application/json"
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "INPUT_INVALID_TYPE", "send the body without Content-Encoding")
        limit = self._limits.body_bytes
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "INPUT_INVALID", "the body ended too early")
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= limit:
                        parts.append(part)
                    # Somewhat too large a body is read to its end all the same, and forgotten:
                    # clients that still write do not see an answer.
                    elif size > 8 * limit:
                        break
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise ApiError(
                408,
                "SERVICE_TIMEOUT",
                f"the request did not arrive within {self._limits.read_seconds:g} s",
                headers={"Connection": "close"},
            ) from None
        if size > limit:
            raise ApiError(
                413,
                "INPUT_TOO_LARGE",
                f"the body has more than {limit:,} bytes; send fewer texts at once",
                headers={"Connection": "close"},
            )
        return b"".join(parts)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let a route answer, unless its client goes away first: then its work is dropped."""

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        route = asyncio.ensure_future(self._app(scope, replay, send))
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({route, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not route.done():
                route.cancel()
        try:
            await route
        except asyncio.CancelledError:
            if not route.cancelled():
                raise


async def send_error(error: ApiError, request_id: str, dialect: str, send: Send) -> None:
    """Answer with an error."""
    body = dump(error_body(error, request_id, dialect))
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= {name.lower(): value for name, value in error.headers.items()}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def dialect_of(path: str) -> str:
    """Whose errors a path's clients read."""
    if path.startswith("/v2/"):
        return "cohere"
    known = ("/embed", "/embed_all", "/embed_sparse", "/rerank", "/tokenize", "/info")
    return "tei" if path in known else "jina"
