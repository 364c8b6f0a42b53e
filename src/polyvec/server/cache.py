"""Vectors of texts that came before, in bounded memory.

Axes in this file: D numbers in a vector.
"""

import hashlib
from collections import OrderedDict

import numpy as np
from jaxtyping import Float32, Int32

OVERHEAD = 300
"""Bytes that an entry costs beside its numbers."""


class Cache:
    """The vectors used last. One entry serves every size and encoding of a text and task."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._vectors: OrderedDict[bytes, Float32[np.ndarray, " D"]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def find(self, key: bytes) -> Float32[np.ndarray, " D"] | None:
        """The vector kept under a key; it counts as used."""
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def keep(self, key: bytes, vector: Float32[np.ndarray, " D"]) -> None:
        """Keep a vector, and forget those unused longest."""
        if key in self._vectors:
            return
        # A copy: the row of a batch would keep the whole batch alive.
        self._vectors[key] = vector.copy()
        self.num_bytes += vector.nbytes + OVERHEAD
        while self.num_bytes > self._max_bytes:
            _, old = self._vectors.popitem(last=False)
            self.num_bytes -= old.nbytes + OVERHEAD


def cache_key(ids: Int32[np.ndarray, " _"], row: int) -> bytes:
    """What two texts share only if the model cannot tell them apart (or SHA-256 is broken)."""
    return hashlib.sha256(ids.tobytes() + row.to_bytes(4, "little", signed=True)).digest()
