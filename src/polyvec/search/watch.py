"""Keep an index up to date while files change, and read questions in the meantime."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from threading import Thread

from watchfiles import Change, watch

from polyvec.search.index import BusyError, Index, NotUpdatedError
from polyvec.search.selection import EVERYTHING, Selection, is_hidden, is_searched
from polyvec.search.updating import Progress, Update

POLL_MILLISECONDS = 100
"""The longest time that a question waits if no file changes."""


def watch_index(
    index: Index,
    questions: SimpleQueue[str],
    progress: Progress = lambda done, total: None,
    *,
    forget: Callable[[str], bool] = lambda doubt: False,
    follow_links: bool = False,
) -> Iterator[Update | NotUpdatedError | str]:
    """Yield, without end, the updates of the index and the questions.

    1. The first item is the result of the first update, even if nothing has changed.
    2. Then come the updates that changed or removed something, and the questions.

    The folder is watched before the first update begins, so no change is missed. The arguments are
    those of `Index.update`; the progress is that of the first update. While another process writes
    the index, the update is tried again every `POLL_MILLISECONDS`; if this happens to the first
    update, the first item is the error. If the index cannot be written, the error is an item, and
    the update is tried again after the next change.

    Raises KeyboardInterrupt when the process is interrupted, and ValueError as `Index.update` does.
    """
    folder, directory = index.folder.resolve(), index.directory.resolve()

    def filter_change(change: Change, path: str) -> bool:
        return is_relevant(change, Path(path), folder, directory, index.selection)

    first, late = True, True
    for changes in watch(
        folder, watch_filter=filter_change, rust_timeout=POLL_MILLISECONDS, yield_on_timeout=True
    ):
        if changes or late:
            try:
                shown = progress if first else lambda done, total: None
                update = index.update(shown, forget=forget, follow_links=follow_links)
                late = False
                if first or update.changed or update.removed:
                    yield update
            except NotUpdatedError as error:
                late = isinstance(error, BusyError)
                if first or not late:
                    yield error
            first = False
        while not questions.empty():
            yield questions.get()


def is_relevant(
    change: Change,
    path: Path,
    folder: Path,
    directory: Path,
    selection: Selection = EVERYTHING,
) -> bool:
    """Whether a change at `path` may change the index of `folder` that is stored in `directory`.

    Folders count, since their files move with them. A deleted path may have been a folder.
    """
    place = PurePosixPath(path.relative_to(folder).as_posix())
    if is_hidden(place, selection) or path.is_relative_to(directory):
        return False
    return is_searched(place, selection) or change is Change.deleted or path.is_dir()


def read_questions() -> SimpleQueue[str]:
    """A queue to which the lines of standard input are added as they come, except empty ones."""
    questions = SimpleQueue[str]()

    def read() -> None:
        # A thread that waits for sys.stdin would hold its lock when the process ends.
        for line in io.FileIO(0, closefd=False):
            if question := line.decode(errors="replace").strip():
                questions.put(question)

    if sys.stdin is not None:
        Thread(target=read, daemon=True).start()
    return questions
