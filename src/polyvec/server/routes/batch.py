"""POST /v1/batch/embeddings and its siblings: requests whose answers are fetched later.

Jobs are answered one after another beside all other requests; the scheduler's fair turns keep
them from being in anybody's way.
"""

import asyncio
import json
from typing import Any

from starlette.responses import Response

from polyvec.server.app import Call, Endpoint, Service, json_response
from polyvec.server.errors import ApiError, bad_input
from polyvec.server.metrics import log
from polyvec.server.quotas import Client
from polyvec.server.requests import BatchRequest
from polyvec.server.routes.embeddings import embeddings
from polyvec.server.serialise import dump
from polyvec.server.stores.batch_jobs import Batch, Batches
from polyvec.server.wire import EmbeddingRequest, validate

GROUP = 32
"""Lines that are answered at once, and then written."""

PATIENCE = 1.0
"""Seconds between looks for a new job, and between trials of a busy engine."""


async def create(call: Call) -> Response:
    """POST /v1/batch/embeddings."""
    request: BatchRequest = call.body
    kept = _kept(call)
    for name in ("input_url", "webhook_url"):
        if getattr(request, name) is not None:
            raise bad_input(f"this server opens no URLs; send no {name}", name)
    if request.input is None:
        raise bad_input("send the lines in input")
    model = call.service.find(request.model)
    model.check_task(request.task)
    ids = [line.custom_id for line in request.input]
    if len(set(ids)) < len(ids):
        raise bad_input("two lines have one custom_id")
    defaults = request.model_dump(include={"model", "task", "dimensions", "normalized"})
    lines = [line.model_dump() for line in request.input]
    batch = await asyncio.to_thread(kept.create, call.client.name, request.model, defaults, lines)
    return json_response(describe(batch))


async def show(call: Call) -> Response:
    """GET /v1/batch/{id}."""
    batch = await asyncio.to_thread(_kept(call).find, call.client.name, call.path["batch_id"])
    return json_response(describe(batch))


async def cancel(call: Call) -> Response:
    """DELETE /v1/batch/{id}."""
    batch = await asyncio.to_thread(_kept(call).cancel, call.client.name, call.path["batch_id"])
    return json_response(describe(batch))


async def list_batches(call: Call) -> Response:
    """GET /v1/batches: the caller's own, the newest first."""
    limit = call.query.get("limit", "20")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= 1_000):
        raise bad_input(f"limit is {limit[:20]!r}, must be in 1..1000", "limit")
    found = await asyncio.to_thread(_kept(call).newest, call.client.name, int(limit))
    return json_response([describe(batch) for batch in found])


async def fetch_output(call: Call) -> Response:
    """GET /v1/batch/{id}/output: the answers so far, a line each."""
    return await _fetch(call, "output")


async def fetch_errors(call: Call) -> Response:
    """GET /v1/batch/{id}/errors: the lines that cannot be answered, and why."""
    return await _fetch(call, "errors")


async def _fetch(call: Call, name: str) -> Response:
    kept = _kept(call)
    batch = await asyncio.to_thread(kept.find, call.client.name, call.path["batch_id"])
    lines = await asyncio.to_thread(kept.read_file, batch, name)
    return Response(lines, media_type="application/jsonl")


def describe(batch: Batch) -> dict[str, Any]:
    """A job as the hosted API describes it."""
    stats = {
        "total": batch.total,
        "completed": batch.completed,
        "failed": batch.failed,
        "total_tokens": batch.tokens,
    }
    return {
        "batch_id": batch.id,
        "status": batch.status,
        "model": batch.model,
        "created_at": batch.created,
        "completed_at": batch.finished,
        "expires_at": batch.expires.isoformat(timespec="seconds"),
        "output_url": f"/v1/batch/{batch.id}/output",
        "error_file_url": f"/v1/batch/{batch.id}/errors",
        "error": None,
        "stats": stats,
    }


async def answer_batches(service: Service) -> None:
    """Answer jobs for ever, those of an earlier server first."""
    kept = service.batches
    assert kept is not None
    while True:
        try:
            batch = await asyncio.to_thread(kept.next)
            if batch is None:
                await asyncio.sleep(PATIENCE)
            else:
                await _answer_some(service, kept, batch)
        except OSError as error:
            # A full disk, say: the jobs wait until somebody has made room.
            log("batch jobs wait", {"why": str(error)})
            await asyncio.sleep(10 * PATIENCE)


async def _answer_some(service: Service, kept: Batches, batch: Batch) -> None:
    lines = await asyncio.to_thread(kept.read_lines, batch, GROUP)
    client = service.clients.named(batch.owner)
    answers = await asyncio.gather(*(_answer(service, client, batch, line) for line in lines))
    output = [line for line, tokens in answers if tokens is not None]
    errors = [line for line, tokens in answers if tokens is None]
    num_tokens = sum(tokens or 0 for _, tokens in answers)
    await asyncio.to_thread(kept.record, batch.id, output, errors, num_tokens)


async def _answer(
    service: Service, client: Client, batch: Batch, line: dict[str, Any]
) -> tuple[bytes, int | None]:
    """A line for the output, and its tokens; or one for the errors, and None."""
    state: dict[str, Any] = {}
    while True:
        try:
            request = validate(EmbeddingRequest, batch.defaults | line["body"])
            response = await embeddings(Call(service, client, request, {}, {}, state))
        except ApiError as error:
            # A busy engine, one that starts again, a quota that fills: it only takes longer.
            if error.status in (429, 503) and "Retry-After" in error.headers:
                await asyncio.sleep(PATIENCE)
                continue
            fault = {"code": error.code, "message": error.message}
            return dump({"custom_id": line["custom_id"], "error": fault}), None
        name = json.dumps(line["custom_id"]).encode()
        body = b'{"custom_id":%b,"response":{"status_code":200,"body":%b}}'
        return body % (name, bytes(response.body)), state["sizes"]["tokens"]


def _kept(call: Call) -> Batches:
    if call.service.batches is None:
        raise ApiError(
            404,
            "RESOURCE_NOT_FOUND",
            "this server keeps no batch jobs; start it with --batches FOLDER",
        )
    return call.service.batches


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/batch/embeddings",
        answer=create,
        summary="Requests whose answers are fetched later",
        reads=BatchRequest,
    ),
    Endpoint(
        method="GET",
        path="/v1/batches",
        answer=list_batches,
        summary="Batch jobs",
        query={"limit": {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 20}},
    ),
    Endpoint(method="GET", path="/v1/batch/{batch_id}", answer=show, summary="A batch job"),
    Endpoint(
        method="DELETE", path="/v1/batch/{batch_id}", answer=cancel, summary="Stop a batch job"
    ),
    Endpoint(
        method="GET",
        path="/v1/batch/{batch_id}/output",
        answer=fetch_output,
        summary="A batch job's answers, lines of JSON",
    ),
    Endpoint(
        method="GET",
        path="/v1/batch/{batch_id}/errors",
        answer=fetch_errors,
        summary="A batch job's lines that cannot be answered",
    ),
]
