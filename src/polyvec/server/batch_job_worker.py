"""The background task that answers batch jobs.

1. Each API key with unfinished jobs has a task, which answers the oldest job of the key first. The
   steps of the keys alternate, and a key that waits for its quota or for the disk holds up no
   other key.
2. A line that was answered 503 because an engine died on it is tried again. After
   `MAX_SHARED_CRASHES` deaths it is tried once more, in batches of its own, and then it is an
   error. The count is on disk, so it also holds after a restart of the server.
3. The lines in progress of a job are dropped as soon as it is cancelled, or its key removed.
4. A job keeps the models with which it began, so that all its vectors have the same weights. If one
   of them is replaced or deleted and does not run any longer, the job fails.

Texts of batch jobs run while no other text waits (`fair_queue`).
"""

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.responses import Response
from starlette.types import Message

from polyvec.server.api_keys import ApiKey
from polyvec.server.errors import ApiError, ErrorCode
from polyvec.server.fair_queue import TrafficClass
from polyvec.server.metrics import LOGGER, log_event
from polyvec.server.model import ServedModel
from polyvec.server.service import Endpoint, RequestContext, Service
from polyvec.server.stores.batch_jobs import BatchJobs
from polyvec.server.stores.job_folder import BatchJob, JobLine, LineAnswer
from polyvec.server.wire import validate

MAX_CONCURRENT_KEYS = 16
"""API keys whose lines are answered concurrently; the others have their turn after one step."""

POLL_SECONDS = 0.2
"""Time until the next look for a new job, and for jobs that were cancelled."""

SWEEP_SECONDS = 10.0
"""Time until the next look for jobs that have expired."""

MAX_WAIT_SECONDS = 10.0
"""Maximum time before the next attempt to answer a line that an exhausted quota refused."""

DISK_RETRY_SECONDS = 10.0
"""Time before the next attempt after an error of the disk."""

RETRY_STATUSES = (429, 503)

CRASH_CODES = (ErrorCode.SERVICE_ENGINE_CRASHED.code, ErrorCode.SERVICE_OUT_OF_MEMORY.code)
"""Errors that may be the fault of the line itself."""

MAX_SHARED_CRASHES = 2
"""A line that was in progress at this many deaths of engines does not share a batch again."""

MAX_INLINE_BYTES = 16_384
"""A line with more bytes is validated in a thread, so that the event loop stays free."""

EMBEDDINGS_PATH = "/v1/embeddings"
"""Path of the endpoint that answers the lines."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A line that has no answer yet."""

    line: JobLine
    seconds: float
    """Time before the next attempt."""
    is_crash: bool = False
    """Whether an engine died on it."""


@dataclass(frozen=True, slots=True)
class BatchWork:
    """Everything that the tasks of the keys share."""

    service: Service
    jobs: BatchJobs
    endpoint: Endpoint
    """The endpoint that answers the lines."""
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_KEYS))
    """Held while the lines of a step are answered. Those who wait get it in order."""


async def answer_batch_jobs(service: Service) -> None:
    """Answer batch jobs until the task is cancelled."""
    jobs = service.batch_jobs
    assert jobs is not None
    endpoint = next(one for one in service.endpoints if one.path == EMBEDDINGS_PATH)
    work = BatchWork(service, jobs, endpoint)
    owners = set[str]()
    next_sweep = 0.0

    async def answer(owner: str) -> None:
        try:
            await _answer_jobs_of(work, owner)
        finally:
            owners.discard(owner)

    async with asyncio.TaskGroup() as tasks:
        while True:
            if time.monotonic() >= next_sweep:
                await jobs.in_thread(jobs.delete_expired)
                next_sweep = time.monotonic() + SWEEP_SECONDS
            for owner in jobs.owners() - owners:
                owners.add(owner)
                tasks.create_task(answer(owner))
            await asyncio.sleep(POLL_SECONDS)


async def _answer_jobs_of(work: BatchWork, owner: str) -> None:
    """Answer the jobs of one key, oldest first, until none is left."""
    paused_until: dict[str, float] = {}
    # Each with the models that it had when the job began.
    services: dict[str, Service] = {}
    while unfinished := work.jobs.unfinished(owner):
        time_now = time.monotonic()
        job = next((job for job in unfinished if paused_until.get(job.id, 0.0) <= time_now), None)
        if job is None:
            await asyncio.sleep(POLL_SECONDS)
            continue
        models_by_name = dict(work.service.models_by_name)
        service = services.setdefault(job.id, replace(work.service, models_by_name=models_by_name))
        try:
            with service.hold_models():
                await _run_while_wanted(work, job, _answer_job(replace(work, service=service), job))
        except OSError as error:
            # The disk may be full. The job waits until there is room; other jobs go on.
            log_event("batch job paused", {"batch_id": job.id, "reason": str(error)})
            paused_until[job.id] = time.monotonic() + DISK_RETRY_SECONDS
        if not work.jobs.is_unfinished(job.id):
            del services[job.id]


async def _run_while_wanted(
    work: BatchWork, job: BatchJob, answering: Coroutine[Any, Any, None]
) -> None:
    """Answer a job until it ends, is cancelled or deleted, or loses its key."""
    task = asyncio.create_task(answering)
    try:
        while not task.done() and work.jobs.is_unfinished(job.id):
            if work.service.api_keys.find(job.owner) is None:
                reason = "the API key of the job does not exist any more"
                await work.jobs.in_thread(work.jobs.fail, job.id, reason)
                return
            await asyncio.wait({task}, timeout=POLL_SECONDS)
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _answer_job(work: BatchWork, job: BatchJob) -> None:
    """Answer the lines of a job. Returns when the job has ended."""
    jobs = work.jobs
    # Answers of lines whose predecessors have none yet.
    answers: dict[int, LineAnswer] = {}
    while lines := await jobs.in_thread(jobs.read_lines, job):
        async with work.turns:
            attempts = await _answer_lines(
                work, job, [line for line in lines if line.number not in answers]
            )
        if (stopped := _find_stopped_model(work.service, job, lines)) is not None:
            reason = (
                f"the model {stopped.name}, with which the job began, was replaced or deleted; "
                "submit all lines again, so that their vectors have the same weights"
            )
            await jobs.in_thread(jobs.fail, job.id, reason)
            return
        waits = [attempt.seconds for attempt in attempts if isinstance(attempt, Retry)]
        answers |= {
            attempt.line.number: attempt for attempt in attempts if isinstance(attempt, LineAnswer)
        }
        ready: list[LineAnswer] = []
        while (number := job.done + len(ready)) in answers:
            ready.append(answers.pop(number))
        current = await jobs.in_thread(jobs.record, job.id, ready)
        if current is None or current.is_finished:
            return
        job = current
        if waits:
            await asyncio.sleep(min(waits))


def _find_stopped_model(
    service: Service, job: BatchJob, lines: Sequence[JobLine]
) -> ServedModel | None:
    """A model of these lines whose engines were stopped."""
    names = {job.model, *(str(line.body.get("model", job.model)) for line in lines)}
    models = map(service.find_model, names)
    return next((m for m in models if m is not None and m.scheduler.stop_reason is not None), None)


async def _answer_lines(
    work: BatchWork, job: BatchJob, lines: Sequence[JobLine]
) -> list[LineAnswer | Retry]:
    """Try to answer lines concurrently."""
    attempts: list[LineAnswer | Retry] = []
    tasks = {asyncio.create_task(_answer_line(work, job, line)): line for line in lines}
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            finished: list[LineAnswer | Retry] = []
            for task in done:
                # A mistake of ours is the answer to one line, as it is to one request in `app`.
                error = task.exception()
                finished.append(
                    task.result() if error is None else _refuse_after(error, job, tasks[task])
                )
            attempts += finished
            # Stored at once: the server may be killed before the engine is back.
            if crashed := [
                one.line.number for one in finished if isinstance(one, Retry) and one.is_crash
            ]:
                await work.jobs.in_thread(work.jobs.record_crashes, job.id, crashed)
    finally:
        for task in tasks:
            task.cancel()
    return attempts


async def _answer_line(work: BatchWork, job: BatchJob, line: JobLine) -> LineAnswer | Retry:
    """The answer to a line, or the time of the next attempt."""
    if line.damage is not None:
        message = f"line {line.number + 1:,} of the stored input is damaged: {line.damage}"
        return _refuse(line, ErrorCode.INTERNAL_ERROR.code, message)
    api_key = work.service.api_keys.find(job.owner)
    if api_key is None:
        return Retry(line, POLL_SECONDS)
    num_crashes = job.crashes.get(line.number, 0)
    is_suspect = num_crashes >= MAX_SHARED_CRASHES
    traffic = TrafficClass.ISOLATED if is_suspect else TrafficClass.BACKGROUND
    try:
        text, num_tokens = await _encode_line(work, api_key, job, line, traffic)
    except ApiError as error:
        is_crash = error.code in CRASH_CODES
        if is_crash and is_suspect:
            message = (
                f"an engine failed {num_crashes + 1} times on this line, the last time without "
                f"other texts; leave it out ({error.message})"
            )
            return _refuse(line, error.code, message)
        if error.status in RETRY_STATUSES and "Retry-After" in error.headers:
            seconds = min(float(error.headers["Retry-After"]), MAX_WAIT_SECONDS)
            return Retry(line, 0.0 if is_crash else seconds, is_crash)
        return _refuse(line, error.code, error.message)
    return LineAnswer(line=line, text=text, tokens=num_tokens)


async def _encode_line(
    work: BatchWork, api_key: ApiKey, job: BatchJob, line: JobLine, traffic: TrafficClass
) -> tuple[bytes, int]:
    """The line of the output, and the number of tokens that were read. Raises ApiError."""
    assert work.endpoint.reads is not None
    state: dict[str, Any] = {}
    fields = job.defaults | line.body
    if line.end - line.start <= MAX_INLINE_BYTES:
        request = validate(work.endpoint.reads, fields)
    else:
        request = await work.jobs.in_thread(validate, work.endpoint.reads, fields)
    context = RequestContext(work.service, api_key, request, {}, {}, state, traffic)
    response = await work.endpoint.answer(context)
    body = b'{"custom_id":%b,"response":{"status_code":200,"body":%b}}'
    custom_id = json.dumps(line.custom_id).encode()
    return body % (custom_id, await _read_response(response)), state["usage"]["tokens"]


async def _read_response(response: Response) -> bytes:
    """The body of a response, which may come in pieces."""
    pieces: list[bytes] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pieces.append(message.get("body", b""))

    await response({"type": "http"}, receive, send)
    return b"".join(pieces)


def _refuse_after(error: BaseException, job: BatchJob, line: JobLine) -> LineAnswer:
    """An error line without details, which go to the log."""
    LOGGER.error("batch job %s, line %d", job.id, line.number + 1, exc_info=error)
    return _refuse(line, ErrorCode.INTERNAL_ERROR.code, "An unexpected error occurred")


def _refuse(line: JobLine, code: str, message: str) -> LineAnswer:
    error = {"custom_id": line.custom_id, "error": {"code": code, "message": message}}
    return LineAnswer(line=line, text=json.dumps(error).encode(), tokens=None)
