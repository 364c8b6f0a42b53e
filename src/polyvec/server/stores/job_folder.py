"""The folder of one batch job: how each of its files is read and written.

- `input.jsonl` has the lines of the job. It is written once.
- `output.jsonl` and `errors.jsonl` have the answers. They are appended to.
- `job.json` has everything else. It is replaced after answers have been appended, so answers that
  it does not account for are cut off after a crash, and every line is answered exactly once.

A stranger or a broken disk may have changed any file. `DamagedJob` says how, in one sentence.
"""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

RETENTION = timedelta(hours=24)
"""Time from a job's creation until its files are deleted."""

STEP_LINES = 32
"""Maximum number of lines that are read and answered in one step."""

STEP_BYTES = 65_536
STEP_TEXTS = 2_048
"""A step reads no further line after this many bytes or texts, because the answers of a step are
in memory until all of them are written."""

MAX_STATE_BYTES = 1_000_000
"""Maximum size of `job.json`."""

MAX_LINE_BYTES = 100_000_000
"""Maximum size of an input line. A request of the default size has shorter lines, also escaped."""

LOST_FILE_ERRORS = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP})
"""Errors that say that something else is in the place of a file. All other errors may pass."""

OWNER_OF_UNREADABLE_JOBS = "anyone"
"""A job without a readable owner is shown by a server without keys, and to no API key."""


class DamagedJob(Exception):
    """The files of a job are not as the server has left them."""


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
    status: Literal["pending", "processing", "completed", "failed", "cancelled"] = "pending"
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    input_bytes: int = 0
    """Size of the input."""
    input_offset: int = 0
    """Size of the lines that are answered."""
    output_bytes: int = 0
    error_bytes: int = 0
    crashes: dict[int, int] = field(default_factory=dict)
    """Number of times that an engine died on a line, by the number of the line."""
    finished: str | None = None
    error: str | None = None
    """Reason for the status `failed`."""

    @property
    def done(self) -> int:
        """Number of lines that are answered, with an output or with an error."""
        return self.completed + self.failed

    @property
    def is_finished(self) -> bool:
        """Whether no further line is going to be answered."""
        return self.status not in ("pending", "processing")

    @property
    def expires(self) -> datetime:
        """Time when its files are deleted."""
        return datetime.fromisoformat(self.created) + RETENTION

    @property
    def stored_bytes(self) -> int:
        """Size of its files."""
        return self.input_bytes + self.output_bytes + self.error_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """One line of the input."""

    number: int
    """Position in the input, from 0."""
    start: int
    end: int
    """Offsets of this line and of the next one, in bytes."""
    custom_id: str | None = None
    """None if the line is damaged."""
    body: dict[str, Any] = field(default_factory=dict)
    damage: str | None = None
    """Reason why the line cannot be answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineAnswer:
    """The answer to one line."""

    line: JobLine
    text: bytes
    """The line of the output or of the errors."""
    tokens: int | None
    """Tokens that the model has read; None for an error."""


JOB_TYPE = TypeAdapter(BatchJob)


def load_job(folder: Path) -> BatchJob:
    """The job of a folder. A damaged job has the status `failed` and the reason."""
    state: dict[str, Any] = {}
    try:
        raw = _read_state(folder / "job.json")
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DamagedJob(f"job.json is not valid JSON: {_cut(error)}") from None
        state = value if isinstance(value, dict) else {}
        job = _check_state(folder, raw)
    except DamagedJob as damage:
        owner, model = state.get("owner"), state.get("model")
        created = datetime.fromtimestamp(_modified_at(folder), UTC)
        return BatchJob(
            id=folder.name,
            owner=owner if isinstance(owner, str) else OWNER_OF_UNREADABLE_JOBS,
            model=model if isinstance(model, str) else "",
            defaults={},
            total=0,
            created=min(created, datetime.now(UTC)).isoformat(timespec="milliseconds"),
            status="failed",
            finished=now(),
            error=str(damage),
        )
    faults: list[str] = []
    sizes: dict[str, int] = {}
    for name, size in (("output", job.output_bytes), ("errors", job.error_bytes)):
        try:
            sizes[name] = min(size, _measure(folder / f"{name}.jsonl"))
        except (DamagedJob, OSError) as error:
            sizes[name] = 0
            faults.append(str(error))
        else:
            if sizes[name] < size:
                faults.append(f"{name}.jsonl has {sizes[name]:,} bytes and must have {size:,}")
    if not faults:
        return job
    job = replace(job, output_bytes=sizes["output"], error_bytes=sizes["errors"])
    return job if job.status == "failed" else set_aside(job, "; ".join(faults))


def set_aside(job: BatchJob, reason: str) -> BatchJob:
    """The job with the status `failed`. Its output stays."""
    return replace(job, status="failed", finished=now(), error=reason)


def create_folder(folder: Path, job: BatchJob, lines: bytes) -> None:
    """Write the files of a new job."""
    folder.mkdir()
    _write(folder / "input.jsonl", lines)
    for name in ("output", "errors"):
        (folder / f"{name}.jsonl").touch()
    save_job(folder, job)


def save_job(folder: Path, job: BatchJob) -> None:
    """Replace `job.json` atomically."""
    temporary = folder / "job.json.new"
    _write(temporary, json.dumps(asdict(job)).encode())
    temporary.replace(folder / "job.json")


def read_lines(folder: Path, job: BatchJob) -> list[JobLine]:
    """The next lines of the input, at least one. Raises DamagedJob if the input has fewer lines."""
    lines: list[JobLine] = []
    check_size(folder / "input.jsonl", job.input_offset)
    with open_file(folder / "input.jsonl", "rb") as file:
        if job.done and not job.input_offset:
            # An earlier version has not stored the offset.
            for _ in range(job.done):
                file.readline(MAX_LINE_BYTES)
        else:
            file.seek(job.input_offset)
        first = start = file.tell()
        for number in range(job.done, min(job.total, job.done + STEP_LINES)):
            raw = file.readline(MAX_LINE_BYTES)
            if not raw and lines:
                # These are answered before the job is set aside.
                break
            if not raw:
                raise DamagedJob(f"input.jsonl has {number:,} lines and must have {job.total:,}")
            if len(raw) == MAX_LINE_BYTES:
                raise DamagedJob(f"line {number + 1:,} of input.jsonl is too long")
            lines.append(_parse_line(raw, number, start))
            start += len(raw)
            if start - first > STEP_BYTES or sum(map(_count_texts, lines)) > STEP_TEXTS:
                break
    return lines


def append_lines(path: Path, size: int, lines: Sequence[bytes]) -> int:
    """Write lines after the first `size` bytes of a file; return the new size."""
    if not lines:
        return size
    check_size(path, size)
    with open_file(path, "r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def open_file(path: Path, mode: Literal["rb", "r+b"]) -> Any:
    """The open file. Raises DamagedJob if something else is in its place."""
    try:
        # Opening a named pipe would wait for its other end.
        if path.exists() and not path.is_file():
            raise DamagedJob(f"{path.name} is not a file")
        return path.open(mode)
    except OSError as error:
        if error.errno in LOST_FILE_ERRORS:
            raise DamagedJob(f"{path.name} cannot be read: {error.strerror}") from None
        raise


def check_size(path: Path, size: int) -> None:
    """Raise DamagedJob if a file does not exist or has fewer than `size` bytes."""
    actual = _measure(path)
    if actual < size:
        raise DamagedJob(f"{path.name} has {actual:,} bytes and must have {size:,}")


def now() -> str:
    """The time as jobs store it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read_state(path: Path) -> bytes:
    try:
        with open_file(path, "rb") as file:
            raw = file.read(MAX_STATE_BYTES + 1)
    except OSError as error:
        raise DamagedJob(f"{path.name} cannot be read: {error.strerror}") from None
    if len(raw) > MAX_STATE_BYTES:
        raise DamagedJob(f"{path.name} has more than {MAX_STATE_BYTES:,} bytes")
    return raw


def _check_state(folder: Path, raw: bytes) -> BatchJob:
    """The job of a `job.json`. Raises DamagedJob if its fields contradict each other."""
    try:
        job = JOB_TYPE.validate_json(raw, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, fault["loc"])) or "it"
        raise DamagedJob(f"job.json is invalid: {name}: {_cut(fault['msg'])}") from None
    numbers = (job.completed, job.failed, job.tokens, job.input_bytes, job.input_offset)
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(job.created)
    except (ValueError, TypeError, OverflowError):
        raise DamagedJob("job.json is invalid: created is not a time with a time zone") from None
    if job.id != folder.name:
        raise DamagedJob("job.json is that of another job")
    if min(*numbers, job.output_bytes, job.error_bytes, *job.crashes.values(), 0) < 0:
        raise DamagedJob("job.json is invalid: a number is negative")
    has_all = job.done == job.total
    is_consistent = {"completed": has_all, "pending": not has_all, "processing": not has_all}
    if job.done > job.total or not is_consistent.get(job.status, True):
        raise DamagedJob(
            f"job.json is invalid: {job.done:,} of {job.total:,} lines are answered, and the "
            f"status is {job.status}"
        )
    if age < -RETENTION:
        raise DamagedJob("job.json is invalid: created lies in the future")
    return job


def _measure(path: Path) -> int:
    with open_file(path, "rb") as file:
        return file.seek(0, os.SEEK_END)


def _parse_line(raw: bytes, number: int, start: int) -> JobLine:
    line = JobLine(number=number, start=start, end=start + len(raw))
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return replace(line, damage=f"it is not valid JSON: {_cut(error)}")
    custom_id = value.get("custom_id") if isinstance(value, dict) else None
    body = value.get("body") if isinstance(value, dict) else None
    if not isinstance(custom_id, str):
        return replace(line, damage="it has no custom_id")
    if not isinstance(body, dict):
        return replace(line, custom_id=custom_id, damage="it has no body")
    return replace(line, custom_id=custom_id, body=body)


def _count_texts(line: JobLine) -> int:
    texts = line.body.get("input")
    return len(texts) if isinstance(texts, list) else 1


def _modified_at(folder: Path) -> float:
    try:
        return folder.lstat().st_mtime
    except OSError:
        return datetime.now(UTC).timestamp()


def _cut(message: object) -> str:
    return str(message)[:200]
