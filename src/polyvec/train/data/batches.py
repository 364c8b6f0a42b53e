"""Rows of every step, drawn when they are asked for: plans too long to hold.

Axes in this file: N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

Rows = Int[np.ndarray, " _rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws(Sequence[Rows]):
    """A plan: each step reads one source in one language (arXiv:2409.10173, section 4.2).

    A step's rows are a function of `seed` and the step's number, so a resumed run reads the same
    ones. Within a step no row comes twice.
    """

    parts: Sequence[Rows]
    """The rows of each source and language."""

    weights: Sequence[float]
    """How often each part is drawn."""

    steps: int
    """Length of the plan."""

    batch_size: int
    """Rows a step; a part with fewer gives all it has."""

    seed: int = 0
    """Another seed is another plan."""

    def __len__(self) -> int:
        return self.steps

    # A slice is never asked for, though `Sequence` would allow it.
    def __getitem__(self, step: int) -> Rows:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The rows of one step; IndexError beyond the last."""
        if not 0 <= step < self.steps:
            raise IndexError(f"the plan has {self.steps} steps, not {step + 1}")
        rng = np.random.default_rng([self.seed, step])
        odds = np.asarray(self.weights) / np.sum(self.weights)
        part = self.parts[rng.choice(len(self.parts), p=odds)]
        return rng.choice(part, min(self.batch_size, len(part)), replace=False)
