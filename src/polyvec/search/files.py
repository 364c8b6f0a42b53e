"""The files of a folder that can be searched, and their bytes."""

import hashlib
import os
from collections.abc import Callable, Iterator
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


def root_of(place: Path) -> Path:
    """The folder to which the paths of `list_files` are relative: `place`, or that of a file."""
    return place.parent if place.is_file() else place


def describe_folder(error: OSError) -> str:
    """A sentence about a folder that cannot be listed."""
    return f"{error.filename}: {error.strerror}"


def list_files(
    place: Path,
    *,
    follow_links: bool = False,
    on_unreadable: Callable[[OSError], object] = lambda error: None,
    on_link: Callable[[Path], object] = lambda link: None,
) -> Iterator[str]:
    """The sorted paths of the files in a folder that can be searched; none is hidden.

    If `place` is a file, it is the only one. `on_unreadable` is called with the error of each
    folder that cannot be listed. Symbolic links that lead out of the folder are followed only with
    `follow_links`; otherwise `on_link` is called with each of them.
    """
    if place.is_file():
        yield place.name
        return
    root, seen = Path(os.path.realpath(place)), set[str]()

    def is_followed(path: Path, *, is_folder: bool) -> bool:
        # Path.is_symlink fails in a folder that cannot be entered.
        if not os.path.islink(path):  # noqa: PTH114
            return True
        leads_out = not Path(os.path.realpath(path)).is_relative_to(root)
        if leads_out and not follow_links:
            on_link(path)
        # The files of a linked folder inside this one are listed under their own names.
        return follow_links if leads_out else not is_folder

    for parent, folders, names in os.walk(place, onerror=on_unreadable, followlinks=follow_links):
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "."
            and name not in IGNORED_FOLDERS
            and is_followed(Path(parent, name), is_folder=True)
        )
        if follow_links:
            if os.path.realpath(parent) in seen:
                # A link to a folder around it would never end.
                folders.clear()
                continue
            seen.add(os.path.realpath(parent))
        for name in sorted(names):
            path = Path(parent, name)
            if (
                name.lower().endswith(SUFFIXES)
                and not name.startswith(".")
                and is_followed(path, is_folder=False)
            ):
                yield path.relative_to(place).as_posix()


def read_file(folder: Path, path: str) -> File:
    """Read a file of the folder. Raises ValueError with the reason if it cannot be read."""
    full_path = folder / path
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path!a}: the name is not UTF-8") from None
    try:
        # Reading a pipe or a device might never end.
        if not full_path.is_file():
            raise ValueError(f"{full_path}: not a regular file")
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
