"""The files of a folder that can be searched, as bytes."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polyvec.search.documents import SUFFIXES

MAX_BYTES = 64 * 2**20
"""Larger files are reported and left out: a passage of them is rarely what one looks for."""

NOT_OURS = {"node_modules", "__pycache__"}
"""Folders of copies of other people's files; hidden folders are left out as well."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was read."""

    path: str
    """Below the folder, with `/` between its parts."""

    raw: bytes
    digest: str
    """Of the bytes: another digest, another content."""

    modified: int
    """When the file says it was last written, in seconds since 1970."""


def list_files(folder: Path) -> Iterator[str]:
    """Paths of files below the folder that can be searched, sorted; none that are hidden."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in NOT_OURS)
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def read_file(folder: Path, path: str) -> File:
    """The file's bytes. Raises ValueError saying why it cannot be read."""
    where = folder / path
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path!a}: the name is not UTF-8") from None
    # A pipe or a device would be read for ever.
    if not where.is_file():
        raise ValueError(f"{where}: not a regular file")
    try:
        state = where.stat()
        if state.st_size > MAX_BYTES:
            raise ValueError(f"{where}: larger than {MAX_BYTES >> 20} MiB")
        with where.open("rb") as file:
            # It may grow while it is read.
            raw = file.read(MAX_BYTES)
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from None
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return File(path, raw, digest, int(state.st_mtime))
