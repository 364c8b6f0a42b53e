"""An engine in a process of its own: it may hang, crash or run out of memory, and the server lives.

Messages are arrays behind a header of fixed size, never pickles:

- to the engine: the counts B, T, S as int64, then int32 token ids [T], lengths [B], adapter
  ids [B], and the spans' starts [S] and ends [S];
- back: one byte that says how it went, then float32 [S, D], or a sentence.

Axes in this file: B texts, T tokens in the batch, S spans, D width.
"""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

from polyvec.batch import Batch, make_batch
from polyvec.engines import Engine

OK, FAILED, NO_MEMORY = b"ofm"

EngineMaker = Callable[[], Engine]
"""Makes the engine inside its process; must be importable there (a module's function)."""

NO_MEMORY_WORDS = ("out of memory", "bad_alloc", "cannot allocate", "can't allocate")
"""How engines that raise RuntimeError say that memory ran out."""


class EngineFailure(RuntimeError):
    """The engine refused one batch and lives on."""


class EngineNoMemory(EngineFailure):
    """The engine had no memory for a batch of this size."""


class EngineGone(RuntimeError):
    """The engine's process has ended, or hung and was ended."""


def load_engine(model: str | None, device: str, precision: Literal["auto", "float32"]) -> Engine:
    """A model's engine, without its tokenizer."""
    from polyvec.encoder import Encoder

    return Encoder.load(model, device=device, precision=precision).engine


class EngineProcess:
    """The parent's side of one engine process. Its methods block: call them off the event loop."""

    def __init__(self, make: EngineMaker, width: int) -> None:
        """Start the process. It is not ready yet."""
        # A forked child would inherit the event loop, its threads' locks and the clients' sockets.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._width = width
        self._process = context.Process(
            target=run_engine, args=(theirs, make), name="polyvec-engine", daemon=True
        )
        self._process.start()
        theirs.close()
        self.batch_tokens = 0
        """What the engine asks for; known when it is ready."""

    def wait_until_ready(self, seconds: float) -> None:
        """Return when the engine has run its first batches.

        Raises EngineGone if it fails, or takes longer than `seconds`.
        """
        self.batch_tokens = int(np.frombuffer(self._receive(seconds), np.int64)[0])

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    @property
    def sentinel(self) -> int:
        """A file descriptor that becomes readable when the process ends."""
        return self._process.sentinel

    def pool(
        self,
        batch: Batch,
        starts: Int32[np.ndarray, " S"],
        ends: Int32[np.ndarray, " S"],
        *,
        seconds: float,
    ) -> Float32[np.ndarray, "S D"]:
        """The mean hidden state of each span.

        Raises EngineFailure or EngineNoMemory if the engine refuses the batch, and EngineGone,
        after ending the process, if there is no answer within `seconds`.
        """
        counts = np.array([len(batch.lengths), len(batch.token_ids), len(starts)], np.int64)
        arrays = (counts, batch.token_ids, batch.lengths, batch.adapter_ids, starts, ends)
        try:
            self._connection.send_bytes(b"".join(array.tobytes() for array in arrays))
        except OSError as error:
            self.stop()
            raise EngineGone(f"the engine has ended ({error})") from None
        answer = self._receive(seconds)
        if answer[0] == OK:
            return np.frombuffer(answer, np.float32, offset=4).reshape(-1, self._width)
        kind = EngineNoMemory if answer[0] == NO_MEMORY else EngineFailure
        raise kind(answer[4:].decode("utf-8", "replace"))

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self, seconds: float) -> bytes:
        try:
            if self._connection.poll(seconds):
                return self._connection.recv_bytes()
            why = f"has not answered for {seconds:g} s"
        except (EOFError, OSError):
            why = "has ended"
        self.stop()
        raise EngineGone(f"the engine {why} (exit code {self._process.exitcode})")


def run_engine(connection: Connection, make: EngineMaker) -> None:
    """What the engine's process does, until the other side closes the connection."""
    # The terminal and the service manager tell the whole group to stop; batches are finished first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engine = make()
    for length in (2, 8, 64):
        batch = make_batch([[0] * length], [-1])
        engine.pool(batch, batch.starts, batch.ends)
    connection.send_bytes(np.int64(engine.batch_tokens).tobytes())
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        connection.send_bytes(_answer(engine, message))


def _answer(engine: Engine, message: bytes) -> bytes:
    num_texts, num_tokens, num_spans = np.frombuffer(message, np.int64, 3).tolist()
    numbers = np.frombuffer(message, np.int32, offset=24)
    sizes = [num_tokens, num_texts, num_texts, num_spans, num_spans]
    token_ids, lengths, adapter_ids, starts, ends = np.split(numbers, np.cumsum(sizes)[:-1])
    batch = Batch(token_ids=token_ids, lengths=lengths, adapter_ids=adapter_ids)
    try:
        pooled = engine.pool(batch, starts, ends)
    except MemoryError:
        return _status(NO_MEMORY) + b"out of memory"
    # What OpenVINO, PyTorch and numpy raise. Anything else ends the process, and a new one starts.
    except (RuntimeError, ValueError, ArithmeticError, IndexError) as error:
        sentence = str(error)
        is_memory = any(words in sentence.lower() for words in NO_MEMORY_WORDS)
        return _status(NO_MEMORY if is_memory else FAILED) + sentence[:500].encode()
    return _status(OK) + np.ascontiguousarray(pooled, np.float32).tobytes()


def _status(kind: int) -> bytes:
    """Four bytes, so that the numbers behind them stay aligned."""
    return bytes([kind, 0, 0, 0])
