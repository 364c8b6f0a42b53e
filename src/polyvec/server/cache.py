"""A cache of mean hidden states, in bounded memory.

Axes in this file: D the model's width.
"""

import hashlib
from collections import OrderedDict

import numpy as np
from jaxtyping import Float32, Int32

ENTRY_OVERHEAD_BYTES = 300
"""Memory that an entry takes beside its numbers."""


class VectorCache:
    """Keeps the most recently used vectors.

    An entry is neither truncated nor normalised, so it serves every dim and every encoding.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._vectors: OrderedDict[bytes, Float32[np.ndarray, " D"]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def find(self, key: bytes) -> Float32[np.ndarray, " D"] | None:
        """The vector of a key, which counts as used; None if there is none."""
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def add(self, key: bytes, vector: Float32[np.ndarray, " D"]) -> None:
        """Add a vector, and evict the least recently used ones that do not fit any more."""
        if key in self._vectors:
            return
        # A copy, since a row of a batch would keep the whole batch in memory.
        self._vectors[key] = vector.copy()
        self.num_bytes += vector.nbytes + ENTRY_OVERHEAD_BYTES
        while self.num_bytes > self._max_bytes:
            _, evicted = self._vectors.popitem(last=False)
            self.num_bytes -= evicted.nbytes + ENTRY_OVERHEAD_BYTES


def cache_key(ids: Int32[np.ndarray, " _"], adapter_id: int) -> bytes:
    """A hash of everything that the model reads of a text (SHA-256)."""
    adapter = adapter_id.to_bytes(4, "little", signed=True)
    return hashlib.sha256(ids.tobytes() + adapter).digest()
