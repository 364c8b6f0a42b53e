"""The files of a folder that can be searched, and their bytes."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polyvec.search.documents import SUFFIXES

MAX_FILE_BYTES = 64 * 2**20
"""Larger files are reported and left out: their passages are rarely what a user looks for."""

IGNORED_FOLDERS = {"node_modules", "__pycache__"}
"""Folders of generated files and of copies. Hidden folders are ignored as well."""


@dataclass(frozen=True, slots=True)
class File:
    """A file with its contents."""

    path: str
    """The path relative to the folder, with `/` between its parts."""

    raw: bytes
    digest: str
    """A hash of the bytes. Files with the same digest have the same contents."""

    modified: int
    """The time at which the file was last written, in seconds since 1970."""


def list_files(folder: Path) -> Iterator[str]:
    """The sorted paths of the files in the folder that can be searched; none is hidden."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and name not in IGNORED_FOLDERS
        )
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def read_file(folder: Path, path: str) -> File:
    """Read a file of the folder. Raises ValueError with the reason if it cannot be read."""
    full_path = folder / path
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path!a}: the name is not UTF-8") from None
    # Reading a pipe or a device might never end.
    if not full_path.is_file():
        raise ValueError(f"{full_path}: not a regular file")
    try:
        state = full_path.stat()
        if state.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{full_path}: larger than {MAX_FILE_BYTES >> 20} MiB")
        with full_path.open("rb") as file:
            # The file may grow while it is read.
            raw = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ValueError(f"{full_path}: {error.strerror}") from None
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return File(path, raw, digest, int(state.st_mtime))
