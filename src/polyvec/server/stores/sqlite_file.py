"""A SQLite file that the server owns: opening it, and one clear error for each way it can fail."""

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from polyvec.server.errors import ApiError, ErrorCode, unavailable
from polyvec.server.metrics import log_event

LOCK_SECONDS = 1.0
"""Time that a call waits for another process to finish its change."""

START_LOCK_SECONDS = 10.0
"""The same when the file is opened."""

MAX_CHECKED_BYTES = 256_000_000
"""A larger file is not checked when it is opened, so that the server starts quickly. Damage is then
found when the damaged part is read."""

MIN_FREE_BYTES = 1_000_000
"""If a disk with less free space reports an error, it is full."""

BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
"""Another process holds the lock."""

RESTORE = "restore the file from a copy, or name another file, which the server creates"
"""What an operator can do about a damaged file."""


class SqliteFile:
    """A SQLite file of one application, with its tables. Threads and processes may share it."""

    def __init__(
        self, path: Path, *, name: str, application_id: int, version: int, tables: Sequence[str]
    ) -> None:
        """Open the file; create it if it does not exist. `tables` are the statements that do so.

        Raises ValueError that begins with the option `name`, names the file and says what to do:
        for a file that is no database, or that of another application, of another version, damaged,
        locked, or that cannot be written.
        """
        self._path = path
        self._name = f"{name} {path}"
        self._application_id = application_id
        self._version = version
        self._tables = tables
        try:
            if path.exists() and not path.is_file():
                raise ValueError(f"{self._name} is not a regular file; name a file")
            if not path.parent.is_dir():
                raise ValueError(f"{self._name}: there is no folder {path.parent}; create it")
            with self._open(START_LOCK_SECONDS) as database:
                self._prepare(database)
        except sqlite3.Error as error:
            raise ValueError(f"{self._name} {self._explain(error)}") from None
        except OSError as error:
            raise ValueError(f"{self._name} cannot be opened: {error.strerror}") from None

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are committed unless an exception is raised.

        Raises ApiError: 503 if another process holds the lock, 507 if the disk is full, and 500,
        with a line in the log, if the file is damaged or cannot be used.
        """
        try:
            with self._open(LOCK_SECONDS) as database:
                yield database
        except sqlite3.Error as error:
            code = _primary_code(error)
            if code in BUSY:
                raise unavailable("the classifiers are locked by another program") from None
            log_event("database failed", {"file": str(self._path), "reason": self._explain(error)})
            if code == sqlite3.SQLITE_FULL or self._is_full(code):
                raise ApiError(
                    ErrorCode.STORAGE_UNAVAILABLE, "the server's disk is full; nothing was stored"
                ) from None
            raise _internal_error() from None

    @contextmanager
    def _open(self, lock_seconds: float) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=lock_seconds)) as database, database:
            # Functions that the file itself calls, in triggers or views, may not have side effects.
            database.execute("pragma trusted_schema=off")
            yield database

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Check the file; create its tables if it is empty. Raises ValueError, sqlite3.Error."""
        # Some file systems have no shared memory, and keep the rollback journal instead.
        with suppress(sqlite3.OperationalError):
            database.execute("pragma journal_mode=wal")
        # Takes the write lock before the first query: another server may open the file too.
        database.execute("begin immediate")
        [application_id] = database.execute("pragma application_id").fetchone()
        [version] = database.execute("pragma user_version").fetchone()
        schema = _read_schema(database)
        if not schema and (application_id, version) == (0, 0):
            for statement in self._tables:
                database.execute(statement)
            database.execute(f"pragma application_id={self._application_id}")
            database.execute(f"pragma user_version={self._version}")
            return
        expected = self._expected_schema()
        # Older versions had a table of the same name, and no application id.
        is_older = (
            application_id == 0 and version < self._version and schema.keys() & expected.keys()
        )
        if application_id != self._application_id and not is_older:
            raise ValueError(
                f"{self._name} is a database of another program; name another file, which the "
                "server creates"
            )
        if version < self._version:
            raise ValueError(
                f"{self._name} was written by an older version of polyvec, which did not store "
                "what this one needs; move the file away, start the server again, and train the "
                "classifiers again"
            )
        if version > self._version:
            raise ValueError(
                f"{self._name} was written by a newer version of polyvec; update polyvec, or name "
                "another file"
            )
        if schema != expected:
            raise ValueError(f"{self._name} is damaged: its tables have changed; {RESTORE}")
        if self._path.stat().st_size <= MAX_CHECKED_BYTES:
            [problem] = database.execute("pragma quick_check(1)").fetchone()
            if problem != "ok":
                raise ValueError(f"{self._name} is damaged: {problem}; {RESTORE}")

    def _expected_schema(self) -> dict[str, str]:
        with closing(sqlite3.connect(":memory:")) as database:
            for statement in self._tables:
                database.execute(statement)
            return _read_schema(database)

    def _explain(self, error: sqlite3.Error) -> str:
        """What is wrong with the file, and what the operator can do."""
        code = _primary_code(error)
        if code in BUSY:
            return "is locked by another program; end that program, or name another file"
        if code == sqlite3.SQLITE_FULL or self._is_full(code):
            return "cannot be written, because the disk is full; make room"
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return f"cannot be written ({error}); make the file and its folder writable"
        if code == sqlite3.SQLITE_NOTADB:
            return f"is not a SQLite database, or is damaged; {RESTORE}"
        return f"is damaged ({error}); {RESTORE}"

    def _is_full(self, code: int) -> bool:
        if code != sqlite3.SQLITE_IOERR:
            return False
        with suppress(OSError):
            return shutil.disk_usage(self._path.parent).free < MIN_FREE_BYTES
        return False


def damaged(reason: str) -> ApiError:
    """500: what the file stores is damaged. The reason goes to the log."""
    log_event("database failed", {"reason": f"{reason}; {RESTORE}"})
    return _internal_error()


def _internal_error() -> ApiError:
    return ApiError(
        ErrorCode.INTERNAL_ERROR,
        "the server's file of classifiers is damaged or cannot be used; its log gives the reason",
    )


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 if the error comes from Python's module."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _read_schema(database: sqlite3.Connection) -> dict[str, str]:
    """The statement that created each table, index, view or trigger."""
    rows = database.execute("select name, sql from sqlite_master where sql is not null")
    return {name: " ".join(sql.split()) for name, sql in rows}
