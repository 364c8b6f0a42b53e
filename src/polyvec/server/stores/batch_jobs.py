"""The batch jobs of a folder, one folder per job.

The folder is locked as long as the store is open, so it belongs to one server and is read only at
the start. A damaged job is set aside with the status `failed`; the other jobs go on.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal, ParamSpec, TypeVar

import filelock

from polyvec.server.errors import ApiError, ErrorCode
from polyvec.server.limits import Limits
from polyvec.server.metrics import log_event
from polyvec.server.stores.job_folder import (
    LOST_FILE_ERRORS,
    BatchJob,
    DamagedJob,
    JobLine,
    LineAnswer,
    append_lines,
    check_size,
    create_folder,
    load_job,
    now,
    open_file,
    read_lines,
    save_job,
    set_aside,
)

JOB_ID_PATTERN = re.compile(r"batch_[0-9a-f]{24}")

LOCK_SECONDS = 2.0
"""Time that a killed server may need until the system releases its lock."""

STORE_THREADS = 4
"""Threads that wait for the disk. They are not those that write answers."""

READ_BYTES = 1_000_000
"""Size of the pieces in which answers are read from disk."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class BatchJobs:
    """The jobs of a folder. Methods that use the disk block: call them with `in_thread`."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        """Open the folder; create it if it does not exist.

        Raises ValueError if another server has opened it, or if it cannot be written.
        """
        self._folder = folder
        self._limits = limits or Limits()
        self._lock = Lock()
        """Held while a job changes, in memory and on disk."""
        self._jobs: dict[str, BatchJob] = {}
        self._unfinished: dict[str, BatchJob] = {}
        self._unsaved = set[str]()
        """Jobs whose last change could not be written to disk."""
        self._threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="batch-jobs")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The system releases the lock when the process ends. Its engines do not inherit it.
            self._folder_lock = filelock.FileLock(
                folder / "lock", timeout=LOCK_SECONDS, thread_local=False
            )
            self._folder_lock.acquire()
            self._load()
        except filelock.Timeout:
            raise ValueError(
                f"the batch folder {folder} is in use by another server; give each server a "
                "folder of its own"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise ValueError(f"cannot open the batch folder {folder}: {error}") from None

    def close(self) -> None:
        """Release the folder. Jobs do not change after this."""
        with self._lock:
            self._jobs.clear()
            self._unfinished.clear()
            self._folder_lock.release()
        self._threads.shutdown(wait=False)

    async def in_thread(
        self,
        function: Callable[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Call a function that waits for the disk."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    def create(
        self, owner: str, model: str, defaults: dict[str, Any], lines: Sequence[dict[str, Any]]
    ) -> BatchJob:
        """Store a new job.

        Raises ApiError 429 if the owner has too many jobs, 507 if the disk does not take it.
        """
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        job = BatchJob(
            id=f"batch_{secrets.token_hex(12)}",
            owner=owner,
            model=model,
            defaults=defaults,
            total=len(lines),
            created=now(),
            input_bytes=len(text),
        )
        with self._lock:
            self._check_room(owner, len(text))
            # The name is not that of a job until all files are there.
            folder = self._folder / f"{job.id}.new"
            try:
                create_folder(folder, job, text)
                folder.rename(self._folder / job.id)
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise _disk_error("store the job", error) from None
            self._put(job)
        return job

    def find(self, owner: str, job_id: str) -> BatchJob:
        """One of the owner's jobs. Raises ApiError 404."""
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner or datetime.now(UTC) > job.expires:
            raise ApiError(
                ErrorCode.RESOURCE_NOT_FOUND,
                f"batch '{job_id[:80]}' not found or access denied",
                param="batch_id",
            )
        return job

    def newest(self, owner: str, limit: int) -> list[BatchJob]:
        """The owner's jobs, newest first."""
        own = [job for job in list(self._jobs.values()) if job.owner == owner]
        return sorted(own, key=lambda job: job.created, reverse=True)[:limit]

    def cancel(self, owner: str, job_id: str) -> BatchJob:
        """Cancel a job; it keeps its output. Raises ApiError 409 if it has already ended."""
        with self._lock:
            job = self.find(owner, job_id)
            if job.is_finished:
                raise ApiError(
                    ErrorCode.CONFLICT_BATCH_FINISHED,
                    f"batch '{job_id}' is already {job.status}; to delete it with its files, add "
                    "?delete_files=true",
                    param="batch_id",
                )
            job = replace(job, status="cancelled", finished=now(), crashes={})
            self._put_and_try_to_save(job)
        return job

    def delete(self, owner: str, job_id: str) -> BatchJob:
        """Delete a job and its files, whatever its status. Raises ApiError 404, 507."""
        with self._lock:
            job = self.find(owner, job_id)
            try:
                self._remove(job_id)
            except OSError as error:
                raise _disk_error("delete the job", error) from None
        return job

    def owners(self) -> set[str]:
        """The owners of unfinished jobs."""
        return {job.owner for job in list(self._unfinished.values())}

    def unfinished(self, owner: str) -> list[BatchJob]:
        """The owner's jobs with lines to answer, oldest first."""
        jobs = [job for job in list(self._unfinished.values()) if job.owner == owner]
        return sorted(jobs, key=lambda job: (job.created, job.id))

    def is_unfinished(self, job_id: str) -> bool:
        """Whether a job has lines to answer."""
        return job_id in self._unfinished

    def read_lines(self, job: BatchJob) -> list[JobLine]:
        """The next lines of the input; none if they are missing, which sets the job aside."""
        try:
            return read_lines(self._folder / job.id, job)
        except DamagedJob as damage:
            self.fail(job.id, str(damage))
            return []

    def record(self, job_id: str, answers: Sequence[LineAnswer]) -> BatchJob | None:
        """Store the answers to a job's next lines.

        Returns the job, or None if it has ended meanwhile. Raises OSError if the disk does not
        take the answers; then nothing has changed.
        """
        with self._lock:
            job = self._unfinished.get(job_id)
            if job is None or not answers:
                return job
            if answers[0].line.number != job.done:
                # Another call has stored them, whose caller was cancelled meanwhile.
                return job
            done = job.done + len(answers)
            output = [answer.text for answer in answers if answer.tokens is not None]
            errors = [answer.text for answer in answers if answer.tokens is None]
            folder = self._folder / job_id
            try:
                job = replace(
                    job,
                    status="completed" if done == job.total else "processing",
                    finished=now() if done == job.total else None,
                    completed=job.completed + len(output),
                    failed=job.failed + len(errors),
                    tokens=job.tokens + sum(answer.tokens or 0 for answer in answers),
                    input_offset=answers[-1].line.end,
                    output_bytes=append_lines(folder / "output.jsonl", job.output_bytes, output),
                    error_bytes=append_lines(folder / "errors.jsonl", job.error_bytes, errors),
                    crashes={line: n for line, n in job.crashes.items() if line >= done},
                )
            except DamagedJob as damage:
                self._fail(job, str(damage))
                return None
            limit = self._limits.stored_job_bytes
            if not job.is_finished and self._count_bytes(job) > limit:
                job = set_aside(
                    job,
                    f"the batch jobs of the API key have more than {limit:,} bytes; fetch the "
                    "output, delete jobs, and submit the lines that are missing",
                )
            try:
                save_job(folder, job)
            except OSError as error:
                if error.errno not in LOST_FILE_ERRORS:
                    raise
                self._fail(job, f"job.json cannot be written: {error.strerror}")
                return None
            self._put(job)
        return job

    def record_crashes(self, job_id: str, lines: Sequence[int]) -> None:
        """Count the death of an engine for each line that was in progress."""
        with self._lock:
            if job := self._unfinished.get(job_id):
                counts = {line: job.crashes.get(line, 0) + 1 for line in lines}
                self._put_and_try_to_save(replace(job, crashes=job.crashes | counts))

    def fail(self, job_id: str, reason: str) -> None:
        """Set a job aside with the status `failed`, unless it has ended meanwhile."""
        with self._lock:
            if job := self._unfinished.get(job_id):
                self._fail(job, reason)

    def read_file(
        self, job: BatchJob, name: Literal["output", "errors"]
    ) -> tuple[int, Iterator[bytes]]:
        """The size of `output` or `errors` so far, and its lines, in pieces.

        Raises ApiError 404 if the file is damaged.
        """
        path = self._folder / job.id / f"{name}.jsonl"
        size = job.output_bytes if name == "output" else job.error_bytes
        try:
            if not size:
                return 0, iter(())
            check_size(path, size)
            return size, _read_pieces(open_file(path, "rb"), size)
        except (DamagedJob, OSError) as error:
            log_event("batch job damaged", {"batch_id": job.id, "reason": str(error)})
            raise ApiError(
                ErrorCode.RESOURCE_NOT_FOUND,
                f"the {name} of batch '{job.id}' cannot be read: {error}",
                param="batch_id",
            ) from None

    def delete_expired(self) -> None:
        """Delete the files of expired jobs, and save jobs that could not be saved before."""
        time = datetime.now(UTC)
        expired = [job.id for job in list(self._jobs.values()) if time > job.expires]
        for job_id in expired:
            with self._lock:
                try:
                    self._remove(job_id)
                except OSError as error:
                    log_event("batch job not deleted", {"batch_id": job_id, "reason": str(error)})
                    break
        for job_id in list(self._unsaved):
            with self._lock:
                if job := self._jobs.get(job_id):
                    self._put_and_try_to_save(job)

    def _load(self) -> None:
        for path in list(self._folder.iterdir()):
            name, _, ending = path.name.partition(".")
            if not JOB_ID_PATTERN.fullmatch(name):
                continue
            if ending:
                # A job that was being created or deleted when the server was killed.
                _erase(path)
                continue
            job = load_job(path)
            if job.status == "failed" and job.error:
                _log_failure(job)
            self._put(job)

    def _check_room(self, owner: str, num_bytes: int) -> None:
        """Raise ApiError 429 if the owner may not store a further job."""
        limits = self._limits
        own = [job for job in self._jobs.values() if job.owner == owner]
        num_unfinished = sum(not job.is_finished for job in own)
        stored = num_bytes + sum(job.stored_bytes for job in own)
        if num_unfinished >= limits.unfinished_jobs:
            problem = f"the API key has {num_unfinished:,} unfinished batch jobs"
            remedy = "try again when one of them has finished"
        elif len(own) >= limits.stored_jobs:
            problem = f"the API key has {len(own):,} batch jobs"
            remedy = "delete finished jobs with DELETE /v1/batch/ID?delete_files=true"
        elif stored > limits.stored_job_bytes:
            problem = f"the batch jobs of the API key would have {stored:,} bytes"
            remedy = "delete finished jobs with DELETE /v1/batch/ID?delete_files=true"
        else:
            return
        raise ApiError(
            ErrorCode.RATE_BATCH_LIMIT_EXCEEDED,
            f"{problem}, which is beyond its limit; {remedy}",
            headers={"Retry-After": "60"},
        )

    def _count_bytes(self, changed: BatchJob) -> int:
        """Size of all jobs of a job's owner, with that job as it is going to be."""
        others = (job for job in self._jobs.values() if job.owner == changed.owner)
        kept = sum(job.stored_bytes for job in others if job.id != changed.id)
        return kept + changed.stored_bytes

    def _put(self, job: BatchJob) -> None:
        self._jobs[job.id] = job
        if job.is_finished:
            self._unfinished.pop(job.id, None)
        else:
            self._unfinished[job.id] = job

    def _put_and_try_to_save(self, job: BatchJob) -> None:
        """Change a job in memory at once, and on disk when that is possible."""
        self._put(job)
        try:
            save_job(self._folder / job.id, job)
        except OSError as error:
            if job.id not in self._unsaved:
                log_event("batch job not saved", {"batch_id": job.id, "reason": str(error)})
            if error.errno not in LOST_FILE_ERRORS:
                self._unsaved.add(job.id)
        else:
            self._unsaved.discard(job.id)

    def _fail(self, job: BatchJob, reason: str) -> None:
        job = replace(set_aside(job, reason), crashes={})
        _log_failure(job)
        self._put_and_try_to_save(job)

    def _remove(self, job_id: str) -> None:
        """Delete a job's files. The first step hides them, so that no part of them is a job."""
        folder = self._folder / job_id
        hidden = folder.with_suffix(".deleted")
        if folder.exists() or folder.is_symlink():
            _erase(hidden)
            folder.rename(hidden)
        self._jobs.pop(job_id, None)
        self._unfinished.pop(job_id, None)
        self._unsaved.discard(job_id)
        _erase(hidden)


def _erase(path: Path) -> None:
    """Delete a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _read_pieces(file: Any, size: int) -> Iterator[bytes]:
    with file:
        while size and (piece := file.read(min(size, READ_BYTES))):
            size -= len(piece)
            yield piece


def _log_failure(job: BatchJob) -> None:
    fields = {"batch_id": job.id, "owner": job.owner, "reason": job.error}
    log_event("batch job failed", fields)


def _disk_error(action: str, error: OSError) -> ApiError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ApiError(ErrorCode.STORAGE_UNAVAILABLE, f"the server cannot {action}: {reason}")
