"""The files of a folder that can be searched, and their bytes."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from polyvec.search.documents import Kind, find_kind, missing_package
from polyvec.search.readers.rows import MAX_ROWS
from polyvec.search.selection import EVERYTHING, PassedOver, Rules, Selection

MAX_FILE_BYTES = 64 * 2**20
"""Larger files are reported and left out: their passages are rarely what a user looks for."""


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

    max_rows: int = MAX_ROWS
    """The rows that are read if it is a table."""


def root_of(place: Path) -> Path:
    """The folder to which the paths of `list_files` are relative: `place`, or that of a file."""
    return place.parent if place.is_file() else place


def describe_folder(error: OSError) -> str:
    """A sentence about a folder that cannot be listed."""
    return f"{error.filename}: {error.strerror}"


def list_files(
    place: Path,
    selection: Selection = EVERYTHING,
    passed_over: PassedOver | None = None,
    *,
    follow_links: bool = False,
    on_unreadable: Callable[[OSError], object] = lambda error: None,
    on_link: Callable[[Path], object] = lambda link: None,
) -> Iterator[str]:
    """The sorted paths of the files in a folder that can be searched; none is hidden.

    If `place` is a file, it is the only one. `passed_over` is told of the files that are there and
    are not among them. `on_unreadable` is called with the error of each folder that cannot be
    listed. Symbolic links that lead out of the folder are followed only with `follow_links`;
    otherwise `on_link` is called with each of them.
    """
    if place.is_file():
        yield place.name
        return
    passed_over = PassedOver() if passed_over is None else passed_over
    rules = Rules(place, selection)
    root, seen = Path(os.path.realpath(place)), set[tuple[int, int]]()
    reasons: dict[Kind, str] = {}

    def is_followed(path: Path, *, is_folder: bool) -> bool:
        if not path.is_symlink():
            return True
        leads_out = not Path(os.path.realpath(path)).is_relative_to(root)
        if leads_out and not follow_links:
            on_link(path)
        # The files of a linked folder inside this one are listed under their own names.
        return follow_links if leads_out else not is_folder

    for parent, folders, names in os.walk(place, onerror=on_unreadable, followlinks=follow_links):
        if follow_links:
            state = Path(parent).stat()
            if (state.st_dev, state.st_ino) in seen:
                # A link to a folder around it would never end.
                folders.clear()
                continue
            seen.add((state.st_dev, state.st_ino))
        inside = "" if Path(parent) == place else Path(parent).relative_to(place).as_posix() + "/"
        rules.enter(inside, names)
        kept = list[str]()
        for name in sorted(folders):
            path = Path(parent, name)
            if name.startswith(".") or not is_followed(path, is_folder=True):
                continue
            if reason := rules.why_not_folder(path, f"{inside}{name}/"):
                passed_over.counts[reason] += 1
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if reason := rules.why_not_file(path, inside + name):
                passed_over.counts[reason] += 1
                continue
            kind = find_kind(name)
            assert kind is not None
            if kind not in reasons:
                reasons[kind] = missing_package(kind)
            if reasons[kind]:
                passed_over.missing[reasons[kind].removeprefix("needs ")] += 1
            elif is_followed(path, is_folder=False):
                yield inside + name


def read_file(folder: Path, path: str, selection: Selection = EVERYTHING) -> File:
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
    kind = find_kind(path)
    is_unusual = kind is not None and kind.has_rows and selection.max_rows != MAX_ROWS
    # A table is another document if more of its rows are read.
    rows = f"{selection.max_rows}".encode()[:16] if is_unusual else b""
    digest = hashlib.blake2b(raw, digest_size=16, person=rows).hexdigest()
    return File(path, raw, digest, int(state.st_mtime), selection.max_rows)
