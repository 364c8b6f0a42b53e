"""Heads of HTTP requests: the request line and the headers, checked before they are parsed.

A head is checked as bytes, so a parser never sees one that is too large or has too many headers.
"""

import re

from polyvec.server.errors import ApiError, ErrorCode
from polyvec.server.limits import Limits

END = b"\r\n\r\n"

UPGRADE_PATTERN = re.compile(rb"\nupgrade:", re.IGNORECASE)

BARE_LINE_FEED_PATTERN = re.compile(rb"(?<!\r)\n")


def find_head_length(data: bytes, limits: Limits, *, searched: int = 0) -> int:
    r"""The length of the head at the start of `data`; 0 if its end has not arrived yet.

    `searched` is the number of bytes in which an earlier call has not found the end.
    Raises ApiError 414 or 431 if the head exceeds a limit, whether or not it is complete, and 400
    if it is not the head of an HTTP/1.1 or HTTP/1.0 request.

    >>> find_head_length(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody", Limits())
    27
    """
    if not b"A" <= data[:1] <= b"Z":
        raise invalid_http("it is not the head of an HTTP request")
    line_end = data.find(b"\r\n", 0, limits.request_line_bytes + 2)
    if line_end < 0 and len(data) >= limits.request_line_bytes + 2:
        raise ApiError(
            ErrorCode.REQUEST_LINE_TOO_LONG,
            f"the request line has more than {limits.request_line_bytes:,} bytes; "
            "send long values in the body",
        )
    end = data.find(END, max(0, searched - len(END) + 1))
    headers_end = end if end >= 0 else len(data) - len(END)
    if line_end >= 0 and headers_end - line_end > limits.header_bytes:
        raise ApiError(
            ErrorCode.HEADERS_TOO_LARGE,
            f"the headers have more than {limits.header_bytes:,} bytes",
        )
    if end < 0:
        if BARE_LINE_FEED_PATTERN.search(data, searched):
            raise invalid_http("its lines do not end with CR and LF")
        return 0
    if data.count(b"\n", line_end, end) > limits.headers:
        raise ApiError(
            ErrorCode.HEADERS_TOO_LARGE, f"the request has more than {limits.headers:,} headers"
        )
    line = data[:line_end]
    if not line.endswith((b" HTTP/1.1", b" HTTP/1.0")) or line.startswith(b"CONNECT "):
        raise invalid_http("the server speaks HTTP/1.1 and HTTP/1.0, and is not a proxy")
    return end + len(END)


def ignore_upgrade(head: bytes) -> bytes:
    r"""The head with its Upgrade headers renamed, since the server declines all offers.

    A server may ignore an offer (RFC 9110, section 7.8), but the parser stops at one. The new name
    has the same length, so everything else stays where it is.

    >>> ignore_upgrade(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n")
    b'GET / HTTP/1.1\r\nx-offer: h2c\r\n\r\n'
    """
    return UPGRADE_PATTERN.sub(b"\nx-offer:", head)


def find_body_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """The length of the body in bytes; None if it is chunked, and its length therefore unknown.

    The parser has refused wrong numbers, several lengths, and a length beside a transfer coding.
    Raises ApiError 400 if the body has another transfer coding.
    """
    length: int | None = 0
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise invalid_http("the only supported Transfer-Encoding is chunked")
            length = None
    return length


def invalid_http(reason: str) -> ApiError:
    """400: the bytes are not a valid request."""
    return ApiError(ErrorCode.INPUT_INVALID_HTTP, f"Invalid HTTP request: {reason}")
