"""The bundled model's engine with faults that certain token ids trigger. No text has them.

A request chooses a fault by sending token ids. The engine's process imports this file.
"""

import os
import time

import numpy as np

from polyvec.server.engine_process import load_engine

NAN, ERROR, MEMORY, DEATH, HANG, SLOW = range(47_900, 47_906)

MEMORY_TEXTS = 3
"""Maximum number of texts in a batch with MEMORY."""


BOS, EOS = 0, 2
"""The bundled model's `<s>` and `</s>`."""


def frame(texts):
    """Texts as they are; bare token ids between `<s>` and `</s>`, as the API expects them."""
    return [
        [BOS, *one, EOS] if isinstance(one, list) and BOS not in one[:1] else one for one in texts
    ]


class FaultyEngine:
    def __init__(self, engine):
        self.engine = engine
        self.batch_tokens = engine.batch_tokens
        self.rope_base = engine.rope_base

    def hidden(self, batch):
        return self.engine.hidden(batch)

    def hidden_and_pool(self, batch, starts, ends):
        return self.engine.hidden_and_pool(batch, starts, ends)

    def pool(self, batch, starts, ends):
        marks = set(batch.token_ids.tolist()) & {NAN, ERROR, MEMORY, DEATH, HANG, SLOW}
        if ERROR in marks:
            raise RuntimeError("the kernel met a shape it does not know")
        if MEMORY in marks and len(batch.lengths) > MEMORY_TEXTS:
            raise MemoryError
        if DEATH in marks:
            os._exit(9)
        if HANG in marks:
            time.sleep(3_600)
        if SLOW in marks:
            time.sleep(0.3)
        pooled = self.engine.pool(batch, starts, ends)
        for position in np.flatnonzero(batch.token_ids == NAN):
            pooled[(starts <= position) & (position < ends)] = np.nan
        return pooled


def missing_engine():
    raise SystemExit(7)


def sleeping_engine():
    time.sleep(3_600)


def faulty_engine():
    return FaultyEngine(load_engine(None, "cpu", "float32"))
