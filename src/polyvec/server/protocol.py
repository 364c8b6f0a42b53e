"""The HTTP protocol of one connection: what a client sends or leaves unread is bounded.

uvicorn's protocol calls the application; this one decides what reaches uvicorn's.

1. A head is collected until it is complete, checked as bytes, and given to the parser at once.
2. A body is given to the parser up to its end. Bytes of a further request wait, and nothing more
   is read, until the request before them is answered.
3. An answer leaves in pieces, each within a time limit.
4. A request that breaks a rule is answered with an error, and the connection is closed after the
   client had time to read it.
"""

import asyncio
import logging
import secrets
import select
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polyvec.server.errors import DEFAULT_ERROR_FORM, ApiError, ErrorCode
from polyvec.server.heads import (
    find_body_length,
    find_head_length,
    ignore_upgrade,
    invalid_http,
)
from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics, log_event
from polyvec.server.middleware import DISCARD_FACTOR
from polyvec.server.serialise import to_json

HEADER_SECONDS = 10.0
"""Time limit for a client to send the head of a request; then the connection is closed."""

LINGER_SECONDS = 5.0
"""Time for a client that still sends to read the error that it got, before it is cut off."""

PROBE_SECONDS = 3.0
"""Time after which a client that has closed its sending side is probed."""

CHECK_SECONDS = 1.0
"""Interval of the checks whether a client that has closed its sending side is still there."""

SLICE_BYTES = 65_536
"""A chunked body is given to the parser in slices of this size."""

PIECE_BYTES = 262_144
"""An answer larger than `SLICE_BYTES` leaves in pieces of this size."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits for everything that a connection may hold."""

    transport: asyncio.Transport

    def __init__(self, *args: Any, limits: Limits, metrics: Metrics, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._metrics = metrics
        self._application: ASGIApp = self.app  # pyright: ignore[reportAttributeAccessIssue]
        self.app = self._run_application  # pyright: ignore[reportAttributeAccessIssue]
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = b""
        """Bytes for which it is not time yet: an incomplete head, or a further request."""
        self._in_head = False
        """Whether the parser is being given a head."""
        self._in_body = False
        """Whether a head has been parsed and its body has not arrived whole."""
        self._body_left: int | None = 0
        """Number of bytes of the body that are to come; None if it is chunked."""
        self._body_parts: list[bytes] = []
        self._num_received = 0
        """Number of bytes since the last head: the body with its framing, and what follows."""
        self._num_framing = 0
        """Number of bytes of a chunked body since the last part of its content."""
        self._is_discarding = False
        """Whether everything that comes is discarded, since the connection is going to close."""
        self._num_checks = 0

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # The connection

    def connection_made(self, transport: Any) -> None:
        """Start the time limit of the first head, or refuse one connection too many.

        uvloop's transport has the methods of asyncio's, and another type.
        """
        super().connection_made(transport)
        self.flow = _GatedFlowControl(transport, lambda: self._is_answering and self._waiting)
        # TLS would otherwise hold eight times as much.
        transport.set_write_buffer_limits(SLICE_BYTES)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # The kernel then takes little more of an answer than the client receives, so an
            # answer that nobody reads is held, and counted, here.
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SLICE_BYTES)
        if len(self.connections) > self._limits.connections:
            self._write_error(
                ApiError(
                    ErrorCode.SERVICE_TOO_MANY_CONNECTIONS,
                    "the server has too many open connections; try again in 1 s",
                    headers={"Retry-After": "1"},
                )
            )
            self._is_discarding = True
            self._close_soon()
            return
        self._start_timer(HEADER_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what the connection held."""
        self._stop_timer()
        self._waiting, self._is_discarding = b"", True
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep the connection open for the answer to a request that has arrived whole."""
        # With TLS, asyncio closes the connection whatever is returned.
        is_half_closed = self._is_answering and not self._in_body and not self._is_discarding
        if not is_half_closed or self.scheme == "https":
            self._start_timer(self._limits.send_seconds, self.transport.abort)
            return False
        self.cycle.keep_alive = False
        self._start_timer(CHECK_SECONDS, self._check_half_closed)
        return True

    def _check_half_closed(self) -> None:
        """Cut off a client that is gone; it cannot be told from one that only stopped sending.

        Both have sent the same. If the answer takes long, an interim response is sent, which every
        client of HTTP/1.1 must accept (RFC 9110, section 15.2). The kernel of a client that is
        gone answers it with a reset.
        """
        if not self._is_answering:
            return
        if _is_reset(self.transport.get_extra_info("socket").fileno()):
            self.transport.abort()
            return
        self._num_checks += 1
        is_due = self._num_checks == round(PROBE_SECONDS / CHECK_SECONDS)
        if is_due and not self.cycle.response_started and self.scope["http_version"] == "1.1":
            self.transport.write(CONTINUE)
        self._start_timer(CHECK_SECONDS, self._check_half_closed)

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, as far as it is time for it."""
        searched = len(self._waiting)
        if searched:
            data, self._waiting = self._waiting + data, b""
        self._parse(data, searched)

    def _parse(self, data: bytes, searched: int = 0) -> None:
        try:
            while data:
                if self._is_discarding:
                    self._count_received(len(data))
                    return
                if self._in_body:
                    data = self._parse_body(data)
                elif self._is_answering:
                    self._waiting = data
                    self.flow.pause_reading()
                    return
                else:
                    data, searched = self._parse_head(data, searched), 0
        except ApiError as error:
            self._refuse(error)
        except httptools.HttpParserUpgrade:
            raise AssertionError("heads with an offer are changed") from None
        except httptools.HttpParserError as error:
            # An error of one of the methods below, which the parser calls, is its context.
            cause = error.__context__
            if isinstance(cause, ApiError):
                self._refuse(cause)
            else:
                is_url = isinstance(error, httptools.HttpParserCallbackError)
                self._refuse(invalid_http("the URL is not valid" if is_url else str(error)))

    def _parse_head(self, data: bytes, searched: int) -> bytes:
        """Parse one head if it has arrived whole, and return the bytes behind it."""
        if not searched:
            # Empty lines before a request are allowed (RFC 9112, section 2.2).
            data = data.lstrip(b"\r\n")
            if not data:
                return b""
            self._unset_keepalive_if_required()
        length = find_head_length(data, self._limits, searched=searched)
        if not length:
            self._waiting = data
            if self._timer is None:
                self._start_timer(HEADER_SECONDS, self.transport.close)
            return b""
        self._in_head = True
        assert self.parser is not None
        self.parser.feed_data(ignore_upgrade(data[:length]))
        self._in_head = False
        return data[length:]

    def _parse_body(self, data: bytes) -> bytes:
        """Parse a part of a body, and return the bytes behind it."""
        left = self._body_left
        part = data[: SLICE_BYTES if left is None else left]
        self._count_received(len(part))
        assert self.parser is not None
        try:
            self.parser.feed_data(part)
        finally:
            # Whole, even if the parser refuses what follows it.
            content = b"".join(self._body_parts)
            self._body_parts.clear()
            if content:
                super().on_body(content)
        if left is not None:
            self._body_left = left - len(part)
        else:
            self._num_framing = 0 if content else self._num_framing + len(part)
            if self._num_framing > self._limits.header_bytes:
                raise ApiError(
                    ErrorCode.HEADERS_TOO_LARGE,
                    "the chunk extensions or trailers have more than "
                    f"{self._limits.header_bytes:,} bytes",
                )
        return data[len(part) :]

    def _count_received(self, num_bytes: int) -> None:
        limits = self._limits
        self._num_received += num_bytes
        if self._num_received <= DISCARD_FACTOR * limits.body_bytes + limits.header_bytes:
            return
        if self._is_discarding:
            self.transport.abort()
            return
        raise ApiError(
            ErrorCode.INPUT_TOO_LARGE,
            f"the body has more than {limits.body_bytes:,} bytes; send fewer texts at once",
        )

    def on_message_begin(self) -> None:
        """Accept the beginning of a head."""
        if not self._in_head:
            # Where a chunked body ends is not known before it is parsed.
            raise invalid_http("a request follows a chunked body before it is answered")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start a request; from here on, `RequestMiddleware` limits the time."""
        self._stop_timer()
        self._body_left = find_body_length(self.headers)
        self._num_received = self._num_framing = 0
        super().on_headers_complete()
        self._in_body = True
        # The request keeps its headers; trailers of a chunked body, which the parser reports like
        # headers, are ignored (RFC 9110, section 6.5.1).
        self.headers = []
        # uvicorn's cycle, which runs later, writes to the transport and closes it.
        self.cycle.transport = self  # pyright: ignore[reportAttributeAccessIssue]

    def on_body(self, body: bytes) -> None:
        """Collect a part of a body: there may be thousands of small ones."""
        self._body_parts.append(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self._in_body = False
        if not self._is_answering:
            self._stop_timer()
        super().on_message_complete()

    # What is sent

    async def _run_application(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; a large answer leaves in pieces, as fast as its client reads."""

        async def send_in_pieces(message: Message) -> None:
            if self.flow.write_paused:
                await self._wait_until_writable()
            if message["type"] == "http.response.start" and self.cycle.waiting_for_100_continue:
                # The client may now send the body, or leave it out: the rest cannot be parsed.
                self.cycle.keep_alive = False
            body = message.get("body", b"")
            if len(body) > SLICE_BYTES:
                rest = memoryview(body)
                while rest:
                    piece, rest = rest[:PIECE_BYTES], rest[PIECE_BYTES:]
                    await send({"type": message["type"], "body": piece, "more_body": True})
                    await self._wait_until_writable()
                # The answer ends when all has left, so the application holds the request till then.
                message = {**message, "body": b""}
            await send(message)

        await self._application(scope, receive, send_in_pieces)

    async def _wait_until_writable(self) -> None:
        """Return when nearly all that was written has left; cut off a client that is too slow."""
        if not self.flow.write_paused:
            return
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                await self.flow.drain()
        except TimeoutError:
            self.transport.abort()

    def write(self, data: bytes | memoryview) -> None:
        """Write a part of an answer."""
        self.transport.write(data)

    def is_closing(self) -> bool:
        """Whether the connection is closed or being closed."""
        return self.transport.is_closing()

    def close(self) -> None:
        """Close the connection after an answer."""
        if self._in_body or self._waiting:
            self._linger()
        else:
            self._close_soon()

    def on_response_complete(self) -> None:
        """Continue with the next request."""
        super().on_response_complete()
        if self._is_discarding or self.transport.is_closing():
            return
        if self._in_body:
            # The request is refused; the rest of its body is discarded.
            self._start_timer(self._limits.read_seconds, self.transport.abort)
        elif self._waiting:
            data, self._waiting = self._waiting, b""
            self._parse(data)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if its client has not read the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    # Errors

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error that no route has seen, and close the connection."""
        if self.transport.is_closing():
            return
        if self._is_answering:
            self.cycle.keep_alive = False
            if not self._in_body:
                # The request before it has arrived whole and gets its answer.
                self._is_discarding = True
                return
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self._in_body:
            # An answer has been sent before the body was complete.
            self._linger()
            return
        self._write_error(error)
        self._linger()

    def _write_error(self, error: ApiError) -> None:
        request_id = secrets.token_hex(8)
        content = to_json(DEFAULT_ERROR_FORM.body(error, request_id))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            "x-request-id": request_id,
            "connection": "close",
            **error.headers,
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "\r\n"]).encode() + content)
        self._metrics.requests.labels("none", error.status).inc()
        entry = {"status": error.status, "code": error.code, "request_id": request_id}
        log_event("request refused", entry, level=logging.INFO)

    def _linger(self) -> None:
        """Close the sending side now, and the connection when the client has done so too.

        If it were closed while bytes are unread, the client's kernel would discard the answer.
        """
        self._is_discarding = True
        self._waiting = b""
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._start_timer(LINGER_SECONDS, self.transport.abort)

    def _close_soon(self) -> None:
        """Close the connection when all has left, or when the client does not read it in time."""
        self.transport.close()
        self._start_timer(self._limits.send_seconds, self.transport.abort)

    def _start_timer(self, seconds: float, call: Callable[[], None]) -> None:
        """Start the only timer of the connection, beside uvicorn's for idle ones."""
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, call)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _GatedFlowControl(FlowControl):
    """uvicorn's flow control, which does not resume reading while `is_held` returns true."""

    def __init__(self, transport: Any, is_held: Callable[[], object]) -> None:
        super().__init__(transport)
        self._is_held = is_held

    def resume_reading(self) -> None:
        """Read on, unless bytes of a further request wait."""
        if not self._is_held():
            super().resume_reading()


def _is_reset(fileno: int) -> bool:
    """Whether the other side has reset the connection, or the connection has failed."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(fileno, 0)
    return bool(poll.poll(0))
