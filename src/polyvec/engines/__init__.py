"""Engines run the network. Each reads a `Batch` and gives float32 numpy arrays.

Axes in this file: T tokens in the batch, S spans, D width.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from polyvec.batch import Batch


@runtime_checkable
class Engine(Protocol):
    """What `Encoder` needs of an engine."""

    batch_tokens: int
    """How many tokens a batch should hold for the hardware to be at full speed."""

    rope_base: float
    """Of rotary positions; may be set at any time."""

    def hidden(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        """Every token's hidden state, in the batch's order."""
        ...

    def pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> Float32[np.ndarray, "S D"]:
        """The mean hidden state of each span [start, end) of the batch's tokens, in float32."""
        ...
