"""Limits of one request and of the whole server. Each field is an option of `polyvec serve`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one request and of the whole server."""

    body_bytes: int = 8_000_000
    """Largest request body, in bytes. 300,000 tokens are a few million bytes in any script."""

    items: int = 2_048
    """Maximum number of texts in a request."""

    request_tokens: int = 300_000
    """Maximum number of tokens in a request, after truncation."""

    queue_tokens: int = 1_000_000
    """Maximum number of tokens in the queue; a request beyond it is answered with 429."""

    requests: int = 1_024
    """Maximum number of requests in progress; a request beyond it is answered with 429."""

    inflight_bytes: int = 256_000_000
    """Maximum total size of the request bodies in progress, in bytes."""

    read_seconds: float = 30.0
    """Time limit for a client to send its request."""

    request_seconds: float = 300.0
    """Time limit for the answer to a request."""

    engine_seconds: float = 30.0
    """Time limit for every 1,000 tokens of a batch; an engine that exceeds it is restarted."""

    drain_seconds: float = 30.0
    """Time limit for the requests in progress when the server is told to stop."""
