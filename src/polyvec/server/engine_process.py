"""Run an engine in a separate process, so that the server survives if the engine crashes or hangs.

A message is a header of fixed size and raw arrays behind it, never a pickle.

Axes in this file: B texts, T tokens in the batch, S spans, D width.

- To the engine: a header with B, T and S (int64); then, in int32, token ids [T], lengths [B],
  adapter ids [B], span starts [S] and span ends [S].
- From the engine: a header with one status byte and three bytes of padding; then float32 vectors
  [S, D], or an error message in UTF-8.

The first message, from the server, is the pickled function that makes the engine.
"""

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

from polyvec.batch import Batch, make_batch
from polyvec.engines import Engine
from polyvec.tasks import NO_ADAPTER

OK, FAILED, OUT_OF_MEMORY = b"ofm"

EngineFactory = Callable[[], Engine]
"""Makes the engine inside its process; it must be importable there (a function of a module)."""

WARM_UP_LENGTHS = (2, 8, 64)
"""Tokens of the texts that an engine encodes before it is ready."""

MAX_ERROR_CHARACTERS = 500

SECRET_VARIABLES = ("POLYVEC_API_KEYS",)
"""Environment variables that an engine's process does not inherit."""

OUT_OF_MEMORY_PHRASES = ("out of memory", "bad_alloc", "cannot allocate", "can't allocate")
"""Phrases by which engines that raise RuntimeError report that memory ran out."""


class EngineFailure(RuntimeError):
    """The engine failed to run one batch, and still runs."""


class EngineOutOfMemory(EngineFailure):
    """The engine had too little memory for a batch of this size."""


class EngineDied(RuntimeError):
    """The engine's process has ended, or it hung and was killed."""


def load_engine(model: str | None, device: str, precision: Literal["auto", "float32"]) -> Engine:
    """A model's engine, without its tokenizer."""
    from polyvec.encoder import Encoder

    return Encoder.load(model, device=device, precision=precision).engine


class EngineProcess:
    """The server's side of one engine process.

    `wait_until_ready` and `pool` block: call them in a thread. `close` must not run at the same
    time as they do; `kill` ends them.
    """

    def __init__(self, make: EngineFactory, width: int, *, niceness: int = 0) -> None:
        """Start the process. It is not ready yet. Raises OSError, and leaves nothing open then.

        `niceness` is by how much it yields the processor to others, as with the program `nice`.
        """
        self._width = width
        self.batch_tokens = 0
        """The engine's best batch size in tokens; known when the engine is ready."""
        with ExitStack() as opened:
            self._connection, child_connection = Pipe()
            opened.callback(self._connection.close)
            with child_connection:
                self.sentinel, child_sentinel = os.pipe()
                opened.callback(os.close, self.sentinel)
                try:
                    # It fits into the buffer of the connection, so this does not wait.
                    self._connection.send_bytes(pickle.dumps(make))
                    self._process = _spawn(child_connection.fileno(), child_sentinel, niceness)
                finally:
                    os.close(child_sentinel)
            self._opened = opened.pop_all()

    sentinel: int
    """A file descriptor that becomes readable when the process ends."""

    def wait_until_ready(self, seconds: float) -> None:
        """Return when the engine has run its first batches.

        Raises EngineDied if it fails, or takes longer than `seconds`.
        """
        self.batch_tokens = int(np.frombuffer(self._receive(seconds), np.int64)[0])

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def pool(
        self,
        batch: Batch,
        starts: Int32[np.ndarray, " S"],
        ends: Int32[np.ndarray, " S"],
        *,
        seconds: float,
    ) -> Float32[np.ndarray, "S D"]:
        """The mean hidden state of each span.

        Raises EngineFailure or EngineOutOfMemory if the engine fails on the batch. Kills the
        process and raises EngineDied if there is no answer within `seconds`.
        """
        counts = np.array([len(batch.lengths), len(batch.token_ids), len(starts)], np.int64)
        arrays = (counts, batch.token_ids, batch.lengths, batch.adapter_ids, starts, ends)
        try:
            # A process that is stopped reads nothing, and the buffer may be too small for a batch.
            self._set_send_timeout(seconds)
            self._connection.send_bytes(b"".join(array.tobytes() for array in arrays))
        except OSError as error:
            raise self._died(f"does not read ({error})") from None
        answer = self._receive(seconds)
        if answer[0] == OK:
            return np.frombuffer(answer, np.float32, offset=4).reshape(-1, self._width)
        failure = EngineOutOfMemory if answer[0] == OUT_OF_MEMORY else EngineFailure
        raise failure(answer[4:].decode("utf-8", "replace"))

    def kill(self) -> None:
        """Kill the process, whatever it is doing. Does not wait for its end."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, wait for its end, and free all that belongs to it."""
        self._process.kill()
        self._process.wait()
        self._opened.close()

    def _receive(self, seconds: float) -> bytes:
        try:
            if self._connection.poll(seconds):
                return self._connection.recv_bytes()
            reason = f"has not answered for {seconds:g} s"
        except (EOFError, OSError):
            reason = "has ended"
        raise self._died(reason)

    def _died(self, reason: str) -> EngineDied:
        self._process.kill()
        return EngineDied(f"the engine {reason} (exit code {self._process.wait()})")

    def _set_send_timeout(self, seconds: float) -> None:
        with socket.socket(fileno=os.dup(self._connection.fileno())) as same:
            timeout = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)


def _spawn(connection: int, sentinel: int, niceness: int) -> subprocess.Popen[bytes]:
    """Start an engine's process, which inherits two file descriptors and no secrets.

    It is not forked: a forked child would inherit the event loop, the locks of other threads and
    the clients' sockets. It has a session of its own: Ctrl-C in a terminal does not reach it.
    """
    environment = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
    # The function that makes the engine is imported from where the server imports it.
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    program = f"from {__name__} import main; main({connection}, {niceness})"
    return subprocess.Popen(
        # -P: the current folder is not a place to import from, unless it is one for the server.
        [sys.executable, "-P", *["-O"] * sys.flags.optimize, "-c", program],
        stdin=subprocess.DEVNULL,
        env=environment,
        pass_fds=(connection, sentinel),
        start_new_session=True,
    )


def main(connection: int, niceness: int) -> None:
    """Run an engine in this process, for the server at the other end of a file descriptor."""
    os.nice(niceness)
    # Service managers signal all processes of a service; batches are finished first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Connection(connection) as server:
        run_engine(server, pickle.loads(server.recv_bytes()))


def run_engine(connection: Connection, make: EngineFactory) -> None:
    """Run batches in the engine's process until the server closes the connection."""
    engine = make()
    for length in WARM_UP_LENGTHS:
        batch = make_batch([[0] * length], [NO_ADAPTER])
        engine.pool(batch, batch.starts, batch.ends)
    answer = np.int64(engine.batch_tokens).tobytes()
    while True:
        try:
            connection.send_bytes(answer)
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        answer = _run_batch(engine, message)


def _run_batch(engine: Engine, message: bytes) -> bytes:
    num_texts, num_tokens, num_spans = np.frombuffer(message, np.int64, 3).tolist()
    numbers = np.frombuffer(message, np.int32, offset=24)
    sizes = [num_tokens, num_texts, num_texts, num_spans, num_spans]
    token_ids, lengths, adapter_ids, starts, ends = np.split(numbers, np.cumsum(sizes)[:-1])
    batch = Batch(token_ids=token_ids, lengths=lengths, adapter_ids=adapter_ids)
    try:
        pooled = engine.pool(batch, starts, ends)
    except MemoryError:
        return _header(OUT_OF_MEMORY) + b"out of memory"
    # These are what OpenVINO, PyTorch and numpy raise. Any other exception ends the process, and
    # the server starts a new one.
    except (RuntimeError, ValueError, ArithmeticError, IndexError) as error:
        reason = str(error)
        is_memory = any(phrase in reason.lower() for phrase in OUT_OF_MEMORY_PHRASES)
        header = _header(OUT_OF_MEMORY if is_memory else FAILED)
        return header + reason[:MAX_ERROR_CHARACTERS].encode()
    return _header(OK) + np.ascontiguousarray(pooled, np.float32).tobytes()


def _header(status: int) -> bytes:
    """Four bytes, so that the numbers after them stay aligned."""
    return bytes([status, 0, 0, 0])
