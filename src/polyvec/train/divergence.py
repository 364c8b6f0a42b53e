"""Divergence: a run whose loss explodes or is no longer finite is stopped, and says so."""

import math
import statistics
from collections import deque
from pathlib import Path

from polyvec.train.metrics import read_records

MAX_SKIPPED_STEPS = 10
"""Steps in a row without a finite loss and gradient, after which a run has diverged."""

MAX_WINDOW_STEPS = 20
"""Steps whose median loss is compared with that of equally many first steps. Short runs have
smaller windows."""

MAX_FACTOR = 3.0
"""A run has diverged if the median has risen to this many times what it was."""

MIN_RISE = 1.0
"""A smaller rise than this above the median of the first steps is not a divergence."""

MIN_RISE_FROM_FIRST = 5.0
"""A smaller rise than this above the loss of the very first step is not a divergence. It is larger,
because a single step may be of an easy source."""


class Diverged(ValueError):
    """A run whose loss explodes or is no longer finite."""


class LossWatch:
    """The losses of a run so far. A resumed run reads those of its earlier steps again."""

    def __init__(self, folder: Path, steps: int, start: int) -> None:
        """`folder` has the metrics and checkpoints of a run that resumes at step `start`."""
        self.folder = folder
        self.skipped = 0
        self.max_skipped = min(MAX_SKIPPED_STEPS, max(2, steps // 2))
        self.window = min(MAX_WINDOW_STEPS, max(3, steps // 4))
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=self.window)
        if start:
            for record in read_records(folder / "metrics.jsonl"):
                if "loss" in record and record["step"] < start:
                    self._add(math.nan if "skipped" in record else record["loss"])

    def check(self, step: int, loss: float) -> None:
        """Raise `Diverged` if the losses show it. NaN stands for a step that was skipped."""
        self._add(loss)
        if self.skipped >= self.max_skipped:
            raise self.diverged(step, f"no loss was finite in {self.skipped} steps in a row")
        if len(self.first) == self.window:
            now = statistics.median(self.last)
            median, first = statistics.median(self.first), self.first[0]
            for before, rise in ((median, MIN_RISE), (first, MIN_RISE_FROM_FIRST)):
                if now > max(MAX_FACTOR * before, before + rise):
                    raise self.diverged(step, f"the loss rose from {before:.3g} to {now:.3g}")

    def diverged(self, step: int, reason: str) -> Diverged:
        """The error for a reason."""
        good = sorted(self.folder.glob("step-*"))
        kept = f"The last good checkpoint is {good[-1]}" if good else "There is no checkpoint yet"
        return Diverged(
            f"the training diverged at step {step + 1}: {reason}. {kept}. Use a lower learning "
            "rate, and another folder"
        )

    def _add(self, loss: float) -> None:
        self.skipped = self.skipped + 1 if math.isnan(loss) else 0
        if not math.isnan(loss):
            self.last.append(loss)
            if len(self.first) < self.window:
                self.first.append(loss)
