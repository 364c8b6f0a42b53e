"""The files of an index's table, and their checksums, which tell whether they are as written.

LanceDB stores no checksums: it would answer differently, or end the process, for damaged bytes. It
never changes a file that it has written, except `HINT`. The list of checksums therefore is
written twice by every change of the index:

1. `begin_change` marks the list as open: while a change is made, and after one that was killed,
   the table may have files that are not in the list, and may lack files that are.
2. `finish_change` adds the checksums of the new files and closes the list.

Reading an index verifies each file once per process.
"""

import errno
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

HINT = "_versions/latest_version_hint.json"
"""The only file of a table that LanceDB overwrites."""

FILE = "checksums.json"
"""The file of the list, beside the table's folder."""

READ_BYTES = 2**20

PAGE_BYTES = 4_096
"""The checksum is the CRC-32 of the sums of each page's 64-bit words, which takes less than a third
of the time of a CRC-32 of all bytes. A change of one word always changes a sum."""

THREADS = 4

LANCE_ERROR = re.compile(r"^lance error|LanceError\(")

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""The number of the system's error in a message of LanceDB."""

DISK_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
"""Errors that say nothing about the files of an index."""

Entry = list[int]
"""The size of a file and its checksum."""


class DamagedError(ValueError):
    """The files of the index are not as they were written. `Index.update` rebuilds it."""


class TableFiles:
    """The files of a table, and the list of their checksums."""

    def __init__(self, table: Path) -> None:
        """`table` is the folder of the table. The list lies beside it."""
        self._table = table
        self._path = table.parent / FILE
        self._verified: dict[str, os.stat_result] = {}
        """The files whose contents were verified, as they were then."""

    def find_damage(self) -> str:
        """What is wrong with the table's files; "" if nothing is.

        Raises OSError if a file cannot be read.
        """
        while True:
            listing = self._read()
            damage = self._compare(listing)
            # Another process may have begun or finished a change meanwhile.
            if not damage or self._read() == listing:
                return damage

    @property
    def exists(self) -> bool:
        """Whether there is a table, or what is left of one. An empty folder is none."""
        is_folder = self._table.is_dir()
        return any(self._table.iterdir()) if is_folder else os.path.lexists(self._table)

    def remove(self) -> None:
        """Remove the table and the list, whatever they are."""
        if self._path.is_dir():
            shutil.rmtree(self._path)
        self._path.unlink(missing_ok=True)
        if self._table.is_dir() and not self._table.is_symlink():
            shutil.rmtree(self._table)
        else:
            self._table.unlink(missing_ok=True)

    @property
    def is_closed(self) -> bool:
        """Whether no change is being made, and the last one was not interrupted."""
        listing = self._read()
        return listing is not None and listing["closed"]

    def remove_newest_version(self) -> bool:
        """Remove the newest version of a table that is being changed, unless it is the only one."""
        # LanceDB counts their names down.
        newest, *older = sorted((self._table / "_versions").glob("*.manifest")) or [None]
        if newest is None or not older:
            return False
        newest.unlink()
        (self._table / HINT).unlink(missing_ok=True)
        return True

    @property
    def changed_at(self) -> float:
        """The time of the last change of the list, in seconds since 1970; 0 if there is none."""
        try:
            return self._path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def begin_change(self) -> None:
        """Open the list, before the table is changed."""
        listing = self._read()
        if listing is None or listing["closed"]:
            known = {} if listing is None else listing["files"]
            # Other files of the list were removed; new ones may get their names.
            present = {path for path, _ in self._list_files()}
            self._write({path: known[path] for path in known.keys() & present}, closed=False)

    def finish_change(self) -> None:
        """Add the files that are new, drop those that are gone, and close the list."""
        listing = self._read()
        known = {} if listing is None else listing["files"]
        states = dict(self._list_files())
        new = [path for path in states if path not in known or path == HINT]
        entries = dict(zip(new, self._compute(new, sync=True), strict=True))
        self._write({path: entries.get(path) or known[path] for path in states}, closed=True)
        self._verified = states

    def _compare(self, listing: dict[str, Any] | None) -> str:
        if listing is None:
            return f"{FILE} is missing or damaged"
        files, states = listing["files"], dict(self._list_files())
        if listing["closed"]:
            if wrong := files.keys() ^ states.keys():
                path = min(wrong)
                return f"{path} is missing" if path in files else f"{path} does not belong to it"
        else:
            files = {path: files[path] for path in files.keys() & states.keys() - {HINT}}
        unverified = [path for path in files if not self._is_verified(path, states[path])]
        for path, entry in zip(unverified, self._compute(unverified), strict=True):
            if files[path] != entry:
                return f"{path} has changed"
            self._verified[path] = states[path]
        return ""

    def _is_verified(self, path: str, state: os.stat_result) -> bool:
        before = self._verified.get(path)
        return before is not None and _identity(before) == _identity(state)

    def _compute(self, paths: list[str], *, sync: bool = False) -> list[Entry]:
        def compute(path: str) -> Entry:
            return _checksum(self._table / path, sync=sync)

        # The checksum and reading release Python's lock.
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(compute, paths))

    def _list_files(self) -> Iterator[tuple[str, os.stat_result]]:
        """The path of each file below the table's folder, and its state."""
        for parent, _, names in os.walk(self._table):
            for name in names:
                path = Path(parent, name)
                try:
                    yield path.relative_to(self._table).as_posix(), path.lstat()
                except FileNotFoundError:
                    # Another process removes versions that it no longer needs.
                    continue

    def _read(self) -> dict[str, Any] | None:
        """The list; None if there is none, or if it is damaged."""
        try:
            listing = json.loads(self._path.read_bytes())
        except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
            return None
        if not isinstance(listing, dict) or listing.keys() != {"closed", "files"}:
            return None
        is_valid = isinstance(listing["files"], dict) and isinstance(listing["closed"], bool)
        return listing if is_valid else None

    def _write(self, files: dict[str, Entry], *, closed: bool) -> None:
        partial = self._path.with_suffix(".new")
        with partial.open("w", encoding="utf-8") as file:
            json.dump({"closed": closed, "files": files}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)


class ExplainDamage:
    """Turn LanceDB's errors about lost or broken files into a sentence that names the remedy."""

    def __init__(self, directory: Path) -> None:
        """`directory` is that of the index."""
        self._directory = directory

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        """Raise DamagedError in place of an error of LanceDB; OSError if the disk is at fault."""
        is_lance_error = isinstance(error, RuntimeError) and LANCE_ERROR.search(str(error))
        if is_lance_error and (found := OS_ERROR.search(str(error))):
            number = int(found[1])
            if number in DISK_ERRORS:
                raise OSError(number, os.strerror(number), str(self._directory)) from error
        # A panic of Rust is no Exception, and its class cannot be imported.
        if is_lance_error or (kind is not None and kind.__name__ == "PanicException"):
            raise DamagedError(
                f"the index {self._directory} is damaged or cannot be written; delete it to "
                f"rebuild it ({str(error)[:120]})"
            ) from error


def _checksum(path: Path, *, sync: bool) -> Entry:
    """The size and the checksum of a file; [-1, 0] if it is not a regular file any more.

    With `sync`, the disk has the contents of the file afterwards.
    """
    number, size, buffer = 0, 0, bytearray(READ_BYTES)
    try:
        # A pipe would never end.
        if not stat.S_ISREG(path.lstat().st_mode):
            return [-1, 0]
        with path.open("rb") as file:
            while count := file.readinto(buffer):
                size += count
                # Zeros complete the last page.
                end = -(-count // PAGE_BYTES) * PAGE_BYTES
                buffer[count:end] = bytes(end - count)
                pages = np.frombuffer(buffer, "<u8", end // 8).reshape(-1, PAGE_BYTES // 8)
                number = zlib.crc32(pages.sum(axis=1, dtype=np.uint64), number)
            if sync:
                os.fsync(file.fileno())
    except FileNotFoundError:
        return [-1, 0]
    return [size, number]


def _identity(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_ino, state.st_size, state.st_mtime_ns
