"""Keep an index up to date while files change, and read questions in between."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from watchfiles import Change, watch

from polyvec.search.documents import SUFFIXES
from polyvec.search.files import NOT_OURS
from polyvec.search.index import BusyError, Index, Update

TICK = 100
"""Milliseconds after which a question is answered at the latest, if no file has changed."""


def follow(
    index: Index,
    questions: SimpleQueue[str],
    progress: Callable[[str], object] = lambda path: None,
) -> Iterator[Update | BusyError | str]:
    """Without end: first what bringing the index up to date did, then news and questions.

    News are updates that changed or removed something. The folder is watched before the first
    update begins, so no change falls between the two. `progress` is told each path the first
    update has done. While another process is writing the index, it is tried again every tick; if
    that is so from the start, the first is the error that says so.

    Raises KeyboardInterrupt when the process is interrupted, and ValueError as `Index.update`.
    """
    folder, place = index.folder.resolve(), index.place.resolve()

    def concerns(change: Change, path: str) -> bool:
        return is_news(change, Path(path), folder, place)

    first, late = True, True
    for changes in watch(folder, watch_filter=concerns, rust_timeout=TICK, yield_on_timeout=True):
        if changes or late:
            try:
                update = index.update(progress if first else None)
                late = False
                if first or update.changed or update.removed:
                    yield update
            except BusyError as busy:
                late = True
                if first:
                    yield busy
            first = False
        while not questions.empty():
            yield questions.get()


def is_news(change: Change, path: Path, folder: Path, place: Path) -> bool:
    """Whether a change at `path` may concern the index of `folder` that is kept in `place`.

    A folder that moves or goes takes files along, and what is gone may have been a folder.
    """
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") or part in NOT_OURS for part in parts)
    if hidden or path.is_relative_to(place):
        return False
    return path.name.lower().endswith(SUFFIXES) or change is Change.deleted or path.is_dir()


def read_questions() -> SimpleQueue[str]:
    """Lines of standard input, filled in as they come; empty ones are left out."""
    questions = SimpleQueue[str]()

    def read() -> None:
        # Not sys.stdin, whose lock a thread that waits would hold when the process ends.
        for line in io.FileIO(0, closefd=False):
            if question := line.decode(errors="replace").strip():
                questions.put(question)

    if sys.stdin is not None:
        Thread(target=read, daemon=True).start()
    return questions
