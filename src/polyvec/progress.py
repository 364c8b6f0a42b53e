"""Progress bars on terminals: a count, a total, a rate and the time left, which tick every second.

A bar that nobody sees is no bar at all: it has neither a thread nor tqdm's lock, which a forked
process could find locked.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

DELAY_SECONDS = 1.0
"""Time until a bar appears: short work needs none."""

TICK_SECONDS = 1.0
"""Time after which the elapsed time is shown again, even if nothing was completed."""


@runtime_checkable
class Bar(Protocol):
    """The part of tqdm's bar that callers use."""

    total: int | float | None

    def update(self, n: int | float | None = 1) -> object:
        """Count something that is done."""
        ...


class HiddenBar:
    """A bar that shows nothing."""

    total: int | float | None = None

    def update(self, n: int | float | None = 1) -> None:
        """Count nothing."""


@contextmanager
def make_bar(unit: str, total: int | None, progress: bool | None = None) -> Iterator[Bar]:
    """A bar on standard error that counts up to `total`, if that is known.

    `progress` None shows it on terminals only, if the work takes more than `DELAY_SECONDS`.
    """
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        yield HiddenBar()
        return
    from tqdm import tqdm

    # Without smoothing, the rate is the mean of the whole time, which a tick does not disturb.
    with tqdm(total=total, unit=unit, delay=DELAY_SECONDS, leave=False, smoothing=0) as bar:
        stopped = threading.Event()

        def tick() -> None:
            wait = DELAY_SECONDS
            while not stopped.wait(wait):
                # A bar that was never printed by an update is not cleared when it is closed.
                bar.last_print_t = max(bar.last_print_t, bar.start_t + DELAY_SECONDS)
                bar.refresh()
                wait = TICK_SECONDS

        ticker = threading.Thread(target=tick, name="progress", daemon=True)
        ticker.start()
        try:
            yield bar
        finally:
            stopped.set()
            ticker.join()
