"""Batch jobs on disk: a folder each, which outlives the server that was killed under it.

A job's folder has its input, output and errors as lines of JSON, and `job.json` with all else.
Output grows first and `job.json` is replaced afterwards, so after a crash what it does not know of
is cut off: every line is answered once.
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

from polyvec.server.errors import ApiError

KEPT = timedelta(hours=24)
"""How long after its creation a job's files can be fetched."""

MAX_JOBS = 1_000
"""Jobs on disk; there must be room for their output."""

ID = re.compile(r"batch_[0-9a-f]{24}")

FINISHED = ("completed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A job, as it is kept."""

    id: str
    owner: str
    """The name of the key."""
    model: str
    defaults: dict[str, Any]
    """Fields of every line's request that the line does not have."""
    total: int
    """Lines of the input."""
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
        """Lines answered, one way or the other."""
        return self.completed + self.failed

    @property
    def expires(self) -> datetime:
        """When its files are deleted."""
        return datetime.fromisoformat(self.created) + KEPT


class Batches:
    """The jobs of a folder. Methods block."""

    def __init__(self, folder: Path) -> None:
        """Open or make the folder."""
        self._folder = folder
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def create(
        self, owner: str, model: str, defaults: dict[str, Any], lines: Sequence[dict[str, Any]]
    ) -> Batch:
        """Keep a new job."""
        if len(self._all()) >= MAX_JOBS:
            raise ApiError(
                429,
                "RATE_BATCH_LIMIT_EXCEEDED",
                f"the server keeps {MAX_JOBS:,} batch jobs and no more; try again later",
                headers={"Retry-After": "60"},
            )
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            owner=owner,
            model=model,
            defaults=defaults,
            total=len(lines),
            created=_now(),
        )
        place = self._folder / batch.id
        place.mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (place / "input.jsonl").write_text(text, "utf-8")
        for name in ("output", "errors"):
            (place / f"{name}.jsonl").touch()
        self._save(batch)
        return batch

    def find(self, owner: str, key: str) -> Batch:
        """One of the owner's jobs. Raises ApiError 404."""
        found = self._read(key) if ID.fullmatch(key) else None
        if found is None or found.owner != owner:
            raise ApiError(
                404,
                "RESOURCE_NOT_FOUND",
                f"batch '{key[:80]}' not found or access denied",
                param="batch_id",
            )
        return found

    def newest(self, owner: str, limit: int) -> list[Batch]:
        """The owner's jobs, the newest first."""
        mine = [batch for batch in self._all() if batch.owner == owner]
        return sorted(mine, key=lambda batch: batch.created, reverse=True)[:limit]

    def cancel(self, owner: str, key: str) -> Batch:
        """Stop a job; lines answered before stay. Raises ApiError 409 if it has ended already."""
        with self._lock:
            batch = self.find(owner, key)
            if batch.status in FINISHED:
                raise ApiError(
                    409,
                    "CONFLICT_BATCH_FINISHED",
                    f"batch '{key}' is {batch.status}",
                    param="batch_id",
                )
            batch = replace(batch, status="cancelled", finished=_now())
            self._save(batch)
        return batch

    def next(self) -> Batch | None:
        """The oldest job with lines to answer."""
        waiting = [batch for batch in self._all() if batch.status not in FINISHED]
        return min(waiting, key=lambda batch: (batch.created, batch.id), default=None)

    def read_lines(self, batch: Batch, number: int) -> list[dict[str, Any]]:
        """The next so many lines of the input."""
        with (self._folder / batch.id / "input.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in islice(lines, batch.done, batch.done + number)]

    def record(
        self, key: str, output: Sequence[bytes], errors: Sequence[bytes], tokens: int
    ) -> None:
        """Keep the answers of a job's next lines; nothing if it was cancelled meanwhile."""
        with self._lock:
            batch = self._read(key)
            if batch is None or batch.status in FINISHED:
                return
            done = batch.done + len(output) + len(errors)
            ended = done == batch.total
            self._save(
                replace(
                    batch,
                    status="completed" if ended else "processing",
                    finished=_now() if ended else None,
                    completed=batch.completed + len(output),
                    failed=batch.failed + len(errors),
                    tokens=batch.tokens + tokens,
                    output_bytes=self._append(key, "output", batch.output_bytes, output),
                    error_bytes=self._append(key, "errors", batch.error_bytes, errors),
                )
            )

    def read_file(self, batch: Batch, name: str) -> bytes:
        """The lines of `output` or `errors` so far."""
        size = batch.output_bytes if name == "output" else batch.error_bytes
        return (self._folder / batch.id / f"{name}.jsonl").read_bytes()[:size]

    def _append(self, key: str, name: str, size: int, lines: Sequence[bytes]) -> int:
        """Add lines behind the first `size` bytes of a file; the new size."""
        with (self._folder / key / f"{name}.jsonl").open("r+b") as file:
            file.truncate(size)
            file.seek(size)
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def _save(self, batch: Batch) -> None:
        """Replace what is known of a job, all at once."""
        place = self._folder / batch.id
        temporary = place / "job.json.new"
        temporary.write_text(json.dumps(asdict(batch)), "utf-8")
        temporary.replace(place / "job.json")

    def _all(self) -> list[Batch]:
        names = [path.name for path in self._folder.iterdir() if ID.fullmatch(path.name)]
        return [batch for batch in map(self._read, names) if batch is not None]

    def _read(self, key: str) -> Batch | None:
        place = self._folder / key
        try:
            batch = Batch(**json.loads((place / "job.json").read_text("utf-8")))
        except FileNotFoundError:
            return None
        if datetime.now(UTC) > batch.expires:
            shutil.rmtree(place, ignore_errors=True)
            return None
        return batch


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
