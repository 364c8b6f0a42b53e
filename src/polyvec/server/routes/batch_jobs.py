"""POST /v1/batch/embeddings and related routes: requests whose answers are fetched later.

`polyvec.server.batch_job_worker` answers the jobs.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from polyvec.server.errors import ApiError, ErrorCode, invalid_input
from polyvec.server.limits import Limits
from polyvec.server.service import Endpoint, RequestContext, json_response
from polyvec.server.stores.batch_jobs import BatchJobs
from polyvec.server.stores.job_folder import BatchJob
from polyvec.server.wire import VALUES_PER_ITEM, Dimensions, StrictModel

MAX_LINES = 50_000
"""Maximum number of lines in a batch job."""

MAX_LISTED_JOBS = 1_000


class BatchLine(StrictModel):
    """One request of a batch job."""

    custom_id: Annotated[str, Field(min_length=1, max_length=256)]
    """Identifies the line; the answer contains it too."""
    body: dict[str, Any]
    """A body of /v1/embeddings. The job has the values of the fields that are missing here."""


LINES = Field(min_length=1, max_length=MAX_LINES, fail_fast=True)
"""The bounds of the lines of a job. The first wrong line ends their validation."""


class BatchRequest(StrictModel):
    """A batch job."""

    model: str
    input: Annotated[list[BatchLine], LINES] | None = None
    input_url: str | None = None
    """Not supported: the server downloads nothing."""
    webhook_url: str | None = None
    """Not supported: the server calls no URLs."""
    task: str | None = None
    dimensions: Dimensions | None = None
    normalized: bool | None = True

    @classmethod
    def max_values(cls, limits: Limits) -> int:
        """As for other bodies, but for the lines of a job."""
        return super().max_values(limits) + VALUES_PER_ITEM * MAX_LINES


async def create(context: RequestContext) -> Response:
    """POST /v1/batch/embeddings."""
    request: BatchRequest = context.body
    jobs = _get_jobs(context)
    for name in ("input_url", "webhook_url"):
        if getattr(request, name) is not None:
            raise invalid_input(f"{name} is not supported: this server opens no URLs", name)
    if request.input is None:
        raise invalid_input("input is missing; send the lines there")
    context.service.choose_model(request.model).choose_task(request.task)
    given = request.input
    ids = [line.custom_id for line in given]
    if len(set(ids)) < len(ids):
        raise invalid_input("two lines have the same custom_id")
    defaults = request.model_dump(include={"model", "task", "dimensions", "normalized"})
    owner = context.api_key.name
    # `model_dump` would copy every value of every line, and hold Python's lock meanwhile.
    lines = [{"custom_id": line.custom_id, "body": line.body} for line in given]
    job = await jobs.in_thread(jobs.create, owner, request.model, defaults, lines)
    return json_response(describe(job))


async def show(context: RequestContext) -> Response:
    """GET /v1/batch/{id}."""
    return json_response(describe(_find_job(context)))


async def cancel(context: RequestContext) -> Response:
    """DELETE /v1/batch/{id}: cancel a job, or delete it with its files."""
    jobs = _get_jobs(context)
    flag = context.query_params.get("delete_files", "false")
    if flag not in ("true", "false"):
        raise invalid_input(f"delete_files is {flag[:20]!r}, must be true or false", "delete_files")
    change = jobs.delete if flag == "true" else jobs.cancel
    owner, job_id = context.api_key.name, context.path_params["batch_id"]
    return json_response(describe(await jobs.in_thread(change, owner, job_id)))


async def list_batches(context: RequestContext) -> Response:
    """GET /v1/batches: the caller's own jobs, newest first."""
    limit = context.query_params.get("limit", "20")
    is_number = limit.isascii() and limit.isdecimal()
    if not (is_number and 1 <= int(limit[:9]) <= MAX_LISTED_JOBS):
        raise invalid_input(f"limit is {limit[:20]!r}, must be in 1..{MAX_LISTED_JOBS}", "limit")
    owner = context.api_key.name
    return json_response([describe(job) for job in _get_jobs(context).newest(owner, int(limit))])


async def fetch_output(context: RequestContext) -> Response:
    """GET /v1/batch/{id}/output: the answers so far, one per line."""
    return await _fetch(context, "output")


async def fetch_errors(context: RequestContext) -> Response:
    """GET /v1/batch/{id}/errors: the lines that could not be answered, and the reasons."""
    return await _fetch(context, "errors")


class LinesResponse(Response):
    """The lines of a file, in pieces, so that memory does not depend on the size of the file."""

    media_type = "application/jsonl"

    def __init__(self, jobs: BatchJobs, size: int, pieces: Iterator[bytes]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"content-length": str(size)})
        self._jobs = jobs
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        while piece := await self._jobs.in_thread(next, self._pieces, b""):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _fetch(context: RequestContext, name: Literal["output", "errors"]) -> Response:
    jobs = _get_jobs(context)
    size, pieces = await jobs.in_thread(jobs.read_file, _find_job(context), name)
    return LinesResponse(jobs, size, pieces)


def describe(job: BatchJob) -> dict[str, Any]:
    """A job in the form of Jina's API."""
    stats = {
        "total": job.total,
        "completed": job.completed,
        "failed": job.failed,
        "total_tokens": job.tokens,
    }
    return {
        "batch_id": job.id,
        "status": job.status,
        "model": job.model,
        "created_at": job.created,
        "completed_at": job.finished,
        "expires_at": job.expires.isoformat(timespec="seconds"),
        "output_url": f"/v1/batch/{job.id}/output",
        "error_file_url": f"/v1/batch/{job.id}/errors",
        "error": job.error,
        "stats": stats,
    }


def _find_job(context: RequestContext) -> BatchJob:
    return _get_jobs(context).find(context.api_key.name, context.path_params["batch_id"])


def _get_jobs(context: RequestContext) -> BatchJobs:
    if context.service.batch_jobs is None:
        raise ApiError(
            ErrorCode.RESOURCE_NOT_FOUND,
            "this server stores no batch jobs; start it with --batches FOLDER",
        )
    return context.service.batch_jobs


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/batch/embeddings",
        answer=create,
        summary="Create a batch job of embedding requests",
        reads=BatchRequest,
    ),
    Endpoint(
        method="GET",
        path="/v1/batches",
        answer=list_batches,
        summary="List the batch jobs of the API key",
        query={
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_LISTED_JOBS,
                "default": 20,
            }
        },
    ),
    Endpoint(
        method="GET",
        path="/v1/batch/{batch_id}",
        answer=show,
        summary="Describe a batch job and its progress",
    ),
    Endpoint(
        method="DELETE",
        path="/v1/batch/{batch_id}",
        answer=cancel,
        summary="Cancel a batch job, or delete it with its files",
        query={"delete_files": {"type": "boolean", "default": False}},
    ),
    Endpoint(
        method="GET",
        path="/v1/batch/{batch_id}/output",
        answer=fetch_output,
        summary="Fetch the answers of a batch job, as lines of JSON",
    ),
    Endpoint(
        method="GET",
        path="/v1/batch/{batch_id}/errors",
        answer=fetch_errors,
        summary="Fetch the failed lines of a batch job, as lines of JSON",
    ),
]
