"""Cross-origin requests: which web pages may call the API, and what their scripts may read."""

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

ANY_ORIGIN = "*"
NO_ORIGIN = "null"
"""The origin of pages that have none: files, and sandboxed frames of any site."""

ORIGIN_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[1-9]\d{0,4})?")
"""An origin as browsers write it: scheme, host and port in lower case, and nothing else."""

DEFAULT_PORTS = {"http": 80, "https": 443}
"""Ports that browsers leave out."""

EXPOSED_HEADERS = (
    "X-Request-Id",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Remaining-Tokens",
    "Retry-After",
    "WWW-Authenticate",
)
"""Response headers that scripts may read, beside those that they may always read."""


def allow_origins(origins: Sequence[str]) -> Middleware:
    """The middleware that lets the pages of these origins call the API.

    A page may send any header: client libraries add headers of their own, and no header grants
    more than the API key does. Preflights need no key, because browsers send none with them. The
    wildcard and `null` stand for pages that the operator does not know; these may neither send
    cookies nor call a server in the user's private network.
    """
    are_named = not {ANY_ORIGIN, NO_ORIGIN} & set(origins)
    return Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=["*"],
        allow_credentials=are_named,
        allow_private_network=are_named,
        expose_headers=EXPOSED_HEADERS,
    )


def check_origin(origin: str) -> None:
    """Raise ValueError unless a browser can send this value in its Origin header."""
    if origin in (ANY_ORIGIN, NO_ORIGIN):
        return
    if not ORIGIN_PATTERN.fullmatch(origin):
        raise ValueError(
            f"--cors {origin!r} is not an origin: write the scheme, the host and the port in lower "
            "case, without a path or a slash at the end, such as https://example.org or "
            "http://localhost:3000"
        )
    parts = urlsplit(origin)
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"--cors {origin!r}: the port must be in 1..65535") from None
    if port is not None and port == DEFAULT_PORTS.get(parts.scheme):
        raise ValueError(
            f"--cors {origin!r}: browsers leave out the port {port} of {parts.scheme}; write "
            f"{parts.scheme}://{parts.netloc.removesuffix(f':{port}')}"
        )
