"""What changed in a folder since it was indexed, and what only cannot be read at the moment.

1. Unreadable is not gone: if a file cannot be read, or a folder above it cannot be listed, the
   passages of the file stay in the index.
2. A file that is missing has moved if another file has the same contents. Otherwise it is lost, as
   is a file that is empty now.
3. Lost files are doubtful if they hold most passages of the index, since an unmounted disk and an
   emptied folder look alike. They are doubtful, too, if their folder is empty and has not been
   changed since they were indexed, since something was mounted there. The user decides what becomes
   of them.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from polyvec.search.files import describe_folder, list_files, read_file
from polyvec.search.selection import EVERYTHING, PassedOver, Selection

MAX_LOST_SHARE = 0.5
"""The share of the passages that an update may remove without asking."""


class IndexedFile(NamedTuple):
    """A file as it is in the index."""

    digest: str
    """The digest of the contents that were indexed. If only a part of the file was, it is that of
    no contents."""

    num_passages: int


@dataclass(slots=True)
class Changes:
    """The difference between a folder and its index."""

    files: dict[str, int] = field(default_factory=dict)
    """New and changed files and their sizes in bytes, the smallest first."""

    gone: list[str] = field(default_factory=list)
    """Files whose passages are to be removed."""

    doubtful: list[str] = field(default_factory=list)
    """Files that seem to be gone, or empty, but perhaps are out of reach."""

    doubt: str = ""
    """The reason, as a sentence; empty if no file is doubtful."""

    skipped: list[str] = field(default_factory=list)
    """One sentence for each file or folder that cannot be read, and one for links."""

    notes: list[str] = field(default_factory=list)
    """Sentences about what was passed over."""

    def settle(self, *, forget: bool) -> None:
        """Treat the doubtful files as they seem to be, or leave their passages in the index."""
        doubtful = {*self.doubtful}
        if forget:
            self.gone = sorted({*self.gone} | (doubtful - self.files.keys()))
        else:
            self.files = {path: size for path, size in self.files.items() if path not in doubtful}


def find_changes(
    place: Path,
    root: Path,
    indexed: Mapping[str, IndexedFile],
    *,
    indexed_at: float,
    rebuild: bool = False,
    follow_links: bool = False,
    selection: Selection = EVERYTHING,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Changes:
    """Compare the files of `place` with those that are indexed. Nothing is written.

    `root` is the folder to which paths are relative, and `indexed_at` the time of the last update,
    in seconds since 1970. With `rebuild`, every file counts as changed, and what cannot be read is
    lost. `progress` is called with 0 and the number of bytes of the changed files found so far.
    """
    changes, links, closed_folders = Changes(), list[Path](), list[str]()
    listed, digests, sizes = set[str](), set[str](), dict[str, int]()
    num_bytes = 0

    def add_closed_folder(error: OSError) -> None:
        folder = Path(error.filename)
        # A folder below the root may be removed while its parent is listed.
        if folder == root or not isinstance(error, FileNotFoundError | NotADirectoryError):
            closed_folders.append(folder.relative_to(root).as_posix())
            kept = "" if rebuild else "; the passages of its files are kept"
            changes.skipped.append(describe_folder(error) + kept)

    passed_over, unreadable = PassedOver(), set[str]()
    for path in list_files(
        place,
        selection,
        passed_over,
        follow_links=follow_links,
        on_unreadable=add_closed_folder,
        on_link=links.append,
    ):
        try:
            file = read_file(root, path, selection)
        except ValueError as error:
            unreadable.add(path)
            if not rebuild:
                listed.add(path)
            changes.skipped.append(describe_skipped(error, indexed.get(path), rebuild=rebuild))
            continue
        listed.add(path)
        digests.add(file.digest)
        if rebuild or path not in indexed or indexed[path].digest != file.digest:
            sizes[path] = len(file.raw)
            num_bytes += len(file.raw)
        progress(0, num_bytes)
    changes.notes = list(passed_over.sentences())
    if links:
        more = f" (as do {len(links) - 1} other links)" if len(links) > 1 else ""
        changes.skipped.append(
            f"{links[0]}: it leads out of the folder{more}; --follow-links follows such links"
        )
    changes.files = dict(sorted(sizes.items(), key=lambda item: (item[1], item[0])))
    missing = sorted(indexed.keys() - listed)
    if not rebuild:
        missing = [path for path in missing if not _is_below(path, closed_folders)]
    # A file that is there and can be read was passed over, as the user wants.
    lost = [
        path
        for path in missing
        if indexed[path].digest not in digests
        and (path in unreadable or not _is_there(root / path))
    ]
    lost += [path for path, size in sizes.items() if size == 0 and path in indexed]
    changes.doubtful, changes.doubt = _find_doubtful(root, indexed, lost, indexed_at)
    changes.gone = sorted({*missing} - {*changes.doubtful})
    return changes


def describe_skipped(error: ValueError, file: IndexedFile | None, *, rebuild: bool = False) -> str:
    """A sentence about a file that cannot be read, and what becomes of its passages."""
    kept = "" if file is None or rebuild else f"; its {file.num_passages} passages are kept"
    return f"{error}{kept}"


def _find_doubtful(
    root: Path, indexed: Mapping[str, IndexedFile], lost: list[str], indexed_at: float
) -> tuple[list[str], str]:
    """The lost files that may only be out of reach, and a sentence that says why."""
    num_passages = sum(file.num_passages for file in indexed.values())
    num_lost = sum(indexed[path].num_passages for path in lost)
    if num_lost > MAX_LOST_SHARE * num_passages:
        return lost, (
            f"{num_lost} of the {num_passages} passages of the index are of {len(lost)} files that "
            f"are no longer in {root}, or are empty now."
        )
    is_unmounted = _unmounted_folders(root, indexed_at)
    doubtful = [path for path in lost if is_unmounted((root / path).parent)]
    if not doubtful:
        return [], ""
    folder = (root / doubtful[0]).parent
    return doubtful, f"{folder} is empty as if a disk were not mounted; it had indexed files."


def _unmounted_folders(root: Path, indexed_at: float) -> Callable[[Path], bool]:
    """A function that says whether a folder, or what is left of it, lost a disk mounted there."""

    @cache
    def is_unmounted(folder: Path) -> bool:
        try:
            with os.scandir(folder) as entries:
                is_empty = next(entries, None) is None
            # Deleting the files of a folder would have changed it.
            return is_empty and folder.stat().st_mtime < indexed_at
        except (FileNotFoundError, NotADirectoryError):
            # A link that leads nowhere may lead to such a disk.
            return folder.is_symlink() or (folder != root and is_unmounted(folder.parent))
        except OSError:
            return True

    return is_unmounted


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _is_below(path: str, folders: list[str]) -> bool:
    return any(folder == "." or path.startswith(f"{folder}/") for folder in folders)
