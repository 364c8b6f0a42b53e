"""Values of requests in a form that may be logged: never a path, a key, or a text.

Clients put keys where they do not belong, for example into the path or `X-Request-Id`. The log,
the traces and the metrics therefore name the route in place of the path, and an id only if it has
one of the usual forms and is no key.
"""

import hashlib
import re
from collections.abc import Callable, Iterable

from starlette.routing import compile_path

from polyvec.server.api_keys import ApiKeys

UNKNOWN_ROUTE = "none"
"""The name of every path that has no route."""

RANDOM_ID = re.compile(
    r"""[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}  # a UUID
    | [0-9a-f]{8,32}                                                  # a number in hexadecimal
    | [0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}               # a traceparent of W3C
    | [0-7][0-9a-hjkmnp-tv-z]{25}                                     # a ULID
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
"""Ids that are logged as they are. Keys of 256 bits are longer, and have other characters."""


def loggable_id(request_id: str, api_keys: ApiKeys) -> str:
    """A request id as it is logged: the id itself if it cannot be a key, else a digest of it."""
    if RANDOM_ID.fullmatch(request_id):
        parts = {request_id, request_id.replace("-", ""), *request_id.split("-")}
        if not any(api_keys.holds(part) for part in parts):
            return request_id
    return "sha256:" + hashlib.sha256(request_id.encode("latin-1")).hexdigest()[:16]


def make_route_finder(templates: Iterable[str]) -> Callable[[str], str]:
    """A function that returns the template of a path, such as `/v1/models/{model_id:path}`."""
    templates = list(dict.fromkeys(templates))
    fixed = {template for template in templates if "{" not in template}
    patterns = [(compile_path(t)[0], t) for t in templates if t not in fixed]

    def find_route(path: str) -> str:
        if path in fixed:
            return path
        return next((t for pattern, t in patterns if pattern.match(path)), UNKNOWN_ROUTE)

    return find_route
