"""Limits of one request and of the whole server: the only list of limits.

To add a limit, add a field to `Limits`. It becomes an option of `polyvec serve`, and a row of the
table in docs/serving.md, which is generated from this list.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def _limit(default: int | float, answer: str) -> Any:
    """A field with its default, and what a client gets that exceeds the limit."""
    return field(default=default, metadata={"answer": answer})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one request and of the whole server."""

    connections: int = _limit(2_048, "503, and the connection is closed")
    """Maximum number of open connections, of all clients together."""

    request_line_bytes: int = _limit(8_192, "414")
    """Longest request line, which has the method and the URL, in bytes."""

    headers: int = _limit(100, "431")
    """Maximum number of headers in a request."""

    header_bytes: int = _limit(32_768, "431")
    """Largest headers of a request in bytes; also the largest trailers of a chunked body."""

    body_bytes: int = _limit(8_000_000, "413")
    """Largest request body, in bytes. 300,000 tokens are a few million bytes in any script."""

    items: int = _limit(2_048, "400")
    """Maximum number of texts in a request."""

    request_tokens: int = _limit(300_000, "400")
    """Maximum number of tokens in a request, after truncation."""

    answer_numbers: int = _limit(10_000_000, "400")
    """Maximum number of numbers in the vectors of an answer. JSON needs about 11 bytes for each."""

    queue_tokens: int = _limit(1_000_000, "429")
    """Maximum number of tokens in the queue."""

    requests: int = _limit(1_024, "429")
    """Maximum number of requests in progress."""

    inflight_bytes: int = _limit(256_000_000, "429")
    """Maximum total size of bodies that have arrived and of answers that are being sent, in
    bytes. It counts the part of a body that has arrived."""

    unfinished_jobs: int = _limit(100, "429")
    """Maximum number of unfinished batch jobs of an API key."""

    stored_jobs: int = _limit(1_000, "429")
    """Maximum number of batch jobs of an API key on disk, finished jobs included."""

    stored_job_bytes: int = _limit(10_000_000_000, "429; a job that grows beyond it fails")
    """Maximum size of the batch jobs of an API key on disk, in bytes, answers included."""

    read_seconds: float = _limit(30.0, "408")
    """Time limit for a client to send the body of its request."""

    send_seconds: float = _limit(30.0, "the connection is closed")
    """Time limit for a client to receive the next 256 KiB of an answer."""

    request_seconds: float = _limit(300.0, "504")
    """Time limit for the answer to a request."""

    engine_seconds: float = _limit(30.0, "503, and the engine is restarted")
    """Time limit for every 1,000 tokens of a batch."""

    restart_seconds: float = _limit(10.0, "503")
    """Time limit for the restart of an engine, if requests wait and no other engine is running."""

    retire_seconds: float = _limit(600.0, "503; a batch job fails")
    """Time limit for requests and batch jobs with a model that the operator has replaced or
    deleted since they began."""

    shutdown_delay_seconds: float = _limit(3.0, "503")
    """Time between SIGTERM, when `/ready` turns false, and the refusal of new requests."""

    drain_seconds: float = _limit(30.0, "the connection is closed")
    """Time limit for the requests in progress after that."""


def limits_table() -> str:
    """The Markdown table of all limits, for docs/serving.md."""
    from docstring_parser import parse_from_object

    about = {
        param.arg_name: " ".join((param.description or "").split())
        for param in parse_from_object(Limits).params
    }
    rows = [
        f"| `--{limit.name.replace('_', '-')}` | {limit.default:,.15g} | {about[limit.name]} "
        f"| {limit.metadata['answer']} |"
        for limit in fields(Limits)
    ]
    return "\n".join(
        ["| option | default | limit | answer beyond it |", "|---|---|---|---|", *rows]
    )
