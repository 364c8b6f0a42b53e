"""Batch jobs on disk. Each job has a folder, which survives a crash of the server.

The folder holds the input, the output and the errors as lines of JSON, and everything else in
`job.json`. The output is appended before `job.json` is replaced. After a crash, output that
`job.json` does not account for is cut off, so every line is answered exactly once.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from polyvec.server.errors import ApiError, ErrorCode

RETENTION = timedelta(hours=24)
"""Time from a job's creation until its files are deleted."""

MAX_JOBS = 1_000
"""Maximum number of jobs on disk, so that there is room for their output."""

JOB_ID_PATTERN = re.compile(r"batch_[0-9a-f]{24}")

FINISHED = ("completed", "cancelled")
"""Statuses of jobs that have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """One job. The fields are those of `job.json`."""

    id: str
    owner: str
    """Name of the API key."""
    model: str
    defaults: dict[str, Any]
    """Fields for the requests of lines that do not have them."""
    total: int
    """Number of lines in the input."""
    created: str
    status: str = "pending"
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    output_bytes: int = 0
    error_bytes: int = 0
    finished: str | None = None

    @property
    def done(self) -> int:
        """Number of lines that are answered, with an output or with an error."""
        return self.completed + self.failed

    @property
    def expires(self) -> datetime:
        """Time when its files are deleted."""
        return datetime.fromisoformat(self.created) + RETENTION


class BatchJobs:
    """The jobs of a folder. All methods block."""

    def __init__(self, folder: Path) -> None:
        """Open the folder; create it if it does not exist."""
        self._folder = folder
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def create(
        self, owner: str, model: str, defaults: dict[str, Any], lines: Sequence[dict[str, Any]]
    ) -> BatchJob:
        """Store a new job. Raises ApiError 429 if there are too many jobs."""
        if len(self._all()) >= MAX_JOBS:
            raise ApiError(
                ErrorCode.RATE_BATCH_LIMIT_EXCEEDED,
                f"the server holds {MAX_JOBS:,} batch jobs, which is its limit; try again later",
                headers={"Retry-After": "60"},
            )
        job = BatchJob(
            id=f"batch_{secrets.token_hex(12)}",
            owner=owner,
            model=model,
            defaults=defaults,
            total=len(lines),
            created=_now(),
        )
        folder = self._folder / job.id
        folder.mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "input.jsonl").write_text(text, "utf-8")
        for name in ("output", "errors"):
            (folder / f"{name}.jsonl").touch()
        self._save(job)
        return job

    def find(self, owner: str, job_id: str) -> BatchJob:
        """One of the owner's jobs. Raises ApiError 404."""
        job = self._load(job_id) if JOB_ID_PATTERN.fullmatch(job_id) else None
        if job is None or job.owner != owner:
            raise ApiError(
                ErrorCode.RESOURCE_NOT_FOUND,
                f"batch '{job_id[:80]}' not found or access denied",
                param="batch_id",
            )
        return job

    def newest(self, owner: str, limit: int) -> list[BatchJob]:
        """The owner's jobs, newest first."""
        own = [job for job in self._all() if job.owner == owner]
        return sorted(own, key=lambda job: job.created, reverse=True)[:limit]

    def cancel(self, owner: str, job_id: str) -> BatchJob:
        """Cancel a job; it keeps its output. Raises ApiError 409 if it has already ended."""
        with self._lock:
            job = self.find(owner, job_id)
            if job.status in FINISHED:
                raise ApiError(
                    ErrorCode.CONFLICT_BATCH_FINISHED,
                    f"batch '{job_id}' is already {job.status}",
                    param="batch_id",
                )
            job = replace(job, status="cancelled", finished=_now())
            self._save(job)
        return job

    def next(self) -> BatchJob | None:
        """The oldest job with lines to answer."""
        unfinished = [job for job in self._all() if job.status not in FINISHED]
        return min(unfinished, key=lambda job: (job.created, job.id), default=None)

    def read_lines(self, job: BatchJob, limit: int) -> list[dict[str, Any]]:
        """The next lines of the input, at most `limit`."""
        with (self._folder / job.id / "input.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in islice(lines, job.done, job.done + limit)]

    def record(
        self, job_id: str, output: Sequence[bytes], errors: Sequence[bytes], tokens: int
    ) -> None:
        """Store the answers to a job's next lines, unless the job was cancelled meanwhile."""
        with self._lock:
            job = self._load(job_id)
            if job is None or job.status in FINISHED:
                return
            is_finished = job.done + len(output) + len(errors) == job.total
            self._save(
                replace(
                    job,
                    status="completed" if is_finished else "processing",
                    finished=_now() if is_finished else None,
                    completed=job.completed + len(output),
                    failed=job.failed + len(errors),
                    tokens=job.tokens + tokens,
                    output_bytes=self._append(job_id, "output", job.output_bytes, output),
                    error_bytes=self._append(job_id, "errors", job.error_bytes, errors),
                )
            )

    def read_file(self, job: BatchJob, name: str) -> bytes:
        """The lines of `output` or `errors` so far."""
        size = job.output_bytes if name == "output" else job.error_bytes
        return (self._folder / job.id / f"{name}.jsonl").read_bytes()[:size]

    def _append(self, job_id: str, name: str, size: int, lines: Sequence[bytes]) -> int:
        """Write lines after the first `size` bytes of a file; return the new size."""
        with (self._folder / job_id / f"{name}.jsonl").open("r+b") as file:
            file.truncate(size)
            file.seek(size)
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def _save(self, job: BatchJob) -> None:
        """Replace `job.json` atomically."""
        folder = self._folder / job.id
        temporary = folder / "job.json.new"
        temporary.write_text(json.dumps(asdict(job)), "utf-8")
        temporary.replace(folder / "job.json")

    def _all(self) -> list[BatchJob]:
        ids = [path.name for path in self._folder.iterdir() if JOB_ID_PATTERN.fullmatch(path.name)]
        return [job for job in map(self._load, ids) if job is not None]

    def _load(self, job_id: str) -> BatchJob | None:
        """The job of a folder, or None; the folder of an expired job is deleted."""
        folder = self._folder / job_id
        try:
            job = BatchJob(**json.loads((folder / "job.json").read_text("utf-8")))
        except FileNotFoundError:
            return None
        if datetime.now(UTC) > job.expires:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return job


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
