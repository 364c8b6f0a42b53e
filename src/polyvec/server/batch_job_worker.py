"""The background task that answers batch jobs, one after another.

Its texts share the scheduler's queue with those of other requests. The fair turns there keep a
batch job from delaying them.
"""

import asyncio
import json
from functools import partial
from typing import Any

from polyvec.server.api_keys import ApiKey
from polyvec.server.errors import ApiError
from polyvec.server.metrics import log_event
from polyvec.server.serialise import to_json
from polyvec.server.service import Endpoint, RequestContext, Service
from polyvec.server.stores.batch_jobs import BatchJob, BatchJobs
from polyvec.server.wire import validate

LINES_PER_STEP = 32
"""Lines that are answered concurrently, and then written to disk."""

POLL_SECONDS = 1.0
"""Time until the next query for a new job, and until the next attempt to answer a line."""

DISK_RETRY_SECONDS = 10.0
"""Time before the next attempt after an error of the disk."""

RETRY_STATUSES = (429, 503)

EMBEDDINGS_PATH = "/v1/embeddings"
"""Path of the endpoint that answers the lines."""


async def answer_batch_jobs(service: Service) -> None:
    """Answer batch jobs, oldest first, until the task is cancelled."""
    jobs = service.batch_jobs
    assert jobs is not None
    endpoint = next(one for one in service.endpoints if one.path == EMBEDDINGS_PATH)
    while True:
        try:
            job = await asyncio.to_thread(jobs.next)
            if job is None:
                await asyncio.sleep(POLL_SECONDS)
            else:
                await _answer_lines(service, endpoint, jobs, job)
        except OSError as error:
            # The disk may be full: the jobs wait until there is room.
            log_event("batch jobs paused", {"reason": str(error)})
            await asyncio.sleep(DISK_RETRY_SECONDS)


async def _answer_lines(
    service: Service, endpoint: Endpoint, jobs: BatchJobs, job: BatchJob
) -> None:
    """Answer the next lines of a job."""
    lines = await asyncio.to_thread(jobs.read_lines, job, LINES_PER_STEP)
    api_key = service.api_keys.find(job.owner)
    answers = await asyncio.gather(
        *(_answer_line(service, endpoint, api_key, job, line) for line in lines)
    )
    output = [line for line, tokens in answers if tokens is not None]
    errors = [line for line, tokens in answers if tokens is None]
    num_tokens = sum(tokens or 0 for _, tokens in answers)
    await asyncio.to_thread(jobs.record, job.id, output, errors, num_tokens)


async def _answer_line(
    service: Service, endpoint: Endpoint, api_key: ApiKey, job: BatchJob, line: dict[str, Any]
) -> tuple[bytes, int | None]:
    """A line for the output and its number of tokens, or a line for the errors and None."""
    assert endpoint.reads is not None
    state: dict[str, Any] = {}
    while True:
        try:
            # A line may be as long as a body.
            check = partial(validate, endpoint.reads, job.defaults | line["body"])
            request = await service.threads.run(check)
            context = RequestContext(service, api_key, request, {}, {}, state)
            response = await endpoint.answer(context)
        except ApiError as error:
            # A busy or restarting engine, or an exhausted quota: the line is tried again later.
            if error.status in RETRY_STATUSES and "Retry-After" in error.headers:
                await asyncio.sleep(POLL_SECONDS)
                continue
            details = {"code": error.code, "message": error.message}
            return to_json({"custom_id": line["custom_id"], "error": details}), None
        custom_id = json.dumps(line["custom_id"]).encode()
        body = b'{"custom_id":%b,"response":{"status_code":200,"body":%b}}'
        return body % (custom_id, bytes(response.body)), state["usage"]["tokens"]
