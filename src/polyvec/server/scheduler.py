"""Dynamic batching: texts of all requests and tasks share batches, in fair turns.

1. The texts of a request wait together, longest first, so that neighbours in a batch have similar
   lengths.
2. An idle engine takes what is queued at once, in the order of `fair_queue`: in turns, and the
   texts of batch jobs after all others.
3. A batch is as large as an engine can run in `BATCH_SECONDS`, within limits.
4. If there are several engines, the last one is the express engine. It takes the small requests,
   and the others, which yield the processor to it, take the rest. A request of one word is thus
   answered at once beside texts of 8,192 tokens, which take an engine for seconds. While the
   express engine does not run, the others take every request. It does so only if none of them
   comes back for `restart_seconds`.
5. A batch that fails is split until the text at fault is alone. A batch that runs out of memory is
   split too, and the next batches are smaller for a while.

The event loop only moves references. One thread per engine builds the arrays and waits for the
engine's process.

Axes in this file: D width.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn

import numpy as np
from jaxtyping import Float32

from polyvec.batch import make_batch
from polyvec.server.engine_process import (
    EngineDied,
    EngineFactory,
    EngineFailure,
    EngineOutOfMemory,
    EngineProcess,
)
from polyvec.server.errors import (
    ApiError,
    ErrorCode,
    engine_crashed,
    not_finite,
    out_of_memory,
    queue_full,
    unavailable,
)
from polyvec.server.fair_queue import (
    SMALL_REQUEST_TOKENS,
    EngineText,
    FairQueue,
    QueuedRequest,
    QueuedText,
    RequestSizes,
    TrafficClass,
)
from polyvec.server.metrics import Metrics, log_event
from polyvec.server.supervision import start_supervised, stop_supervised

BATCH_SECONDS = 0.1
"""Target duration of a batch. In a busy server, a text waits for about one batch."""

MIN_BATCH_TOKENS = 512
"""Smaller batches do not use an engine fully."""

YIELDING_NICENESS = 10
"""Niceness of engines beside an express engine, which then gets nine tenths of the processor."""

START_POLL_SECONDS = 0.02
"""Time between two looks whether the engines of a new model run."""

REAP_SECONDS = 0.01
"""Time between two looks whether an engine that was killed has ended."""

INITIAL_TOKENS_PER_SECOND = 5_000.0
"""Estimate of an engine's speed before the first batch."""


class Scheduler:
    """Queues the texts of requests, runs them on one or more engines, and restarts engines."""

    def __init__(
        self,
        make: EngineFactory,
        width: int,
        metrics: Metrics,
        *,
        num_engines: int = 1,
        queue_tokens: int = 1_000_000,
        batch_tokens: int | None = None,
        engine_seconds: float = 30.0,
        start_seconds: float = 300.0,
        restart_seconds: float = 10.0,
    ) -> None:
        """Nothing starts before `start`.

        `queue_tokens` limits the queue. `batch_tokens` limits a batch; the default is a quarter of
        the engine's own batch size. An engine is restarted if it has not answered for
        `engine_seconds` per 1,000 tokens of its batch, or has not started in `start_seconds`.
        Requests that wait when the last engine ends get 503 if none runs after `restart_seconds`.
        """
        self.queue = FairQueue()
        self.alive = set[int]()
        """Numbers of the engines that run."""
        self.num_busy = 0
        self.engines: list[EngineProcess | None] = [None] * num_engines
        self.tokens_per_second = INITIAL_TOKENS_PER_SECOND
        """Running estimate of the speed of one engine."""
        self._express = num_engines - 1 if num_engines > 1 else None
        """Number of the express engine."""
        self._alone_since: float | None = None
        """Time since which only the express engine runs."""
        self.start_error: str | None = None
        """Why an engine has ended before it was ready, the last time that this happened."""
        self.stop_reason: str | None = None
        """Why the engines were stopped; None before that."""
        self._make = make
        self._width = width
        self._metrics = metrics
        self._queue_tokens = queue_tokens
        self._batch_tokens = batch_tokens
        self._engine_seconds = engine_seconds
        self._start_seconds = start_seconds
        self._restart_seconds = restart_seconds
        self._restart_timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._first_started = asyncio.Event()
        self._supervisors: list[asyncio.Task[NoReturn]] = []

    @property
    def is_ready(self) -> bool:
        """Whether at least one engine can run a batch."""
        return len(self.alive) > 0

    def start(self) -> None:
        """Start the engines; `is_ready` turns true with the first one."""
        for number in range(len(self.engines)):
            run = partial(self._run_engine, number)
            self._supervisors.append(start_supervised(f"engine {number}", run))

    async def wait_until_started(self) -> None:
        """Return when every engine runs. Raises EngineDied if one of them ends before."""
        while len(self.alive) < len(self.engines):
            if self.start_error is not None:
                raise EngineDied(self.start_error)
            await asyncio.sleep(START_POLL_SECONDS)

    async def stop(self, reason: str = "the server is shutting down") -> None:
        """Stop the engines. Requests that wait, and later ones, get 503 with the reason."""
        self.stop_reason = reason
        await stop_supervised(self._supervisors)
        self._supervisors.clear()
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        self._fail_waiting(unavailable(reason))

    async def run(
        self, texts: Sequence[EngineText], traffic: TrafficClass = TrafficClass.INTERACTIVE
    ) -> list[Float32[np.ndarray, "_ D"]]:
        """The vectors of each text's spans, neither truncated nor normalised.

        If the caller is cancelled, texts that still wait are dropped. Raises ApiError: 429 if the
        queue is full, 503 if no engine runs or it died with the texts, 500 if it fails on a text.
        """
        if self.stop_reason is not None:
            raise unavailable(self.stop_reason)
        if not self.is_ready:
            raise no_engine()
        request = QueuedRequest(texts, traffic)
        waiting = self.queue.count_tokens(traffic)
        if waiting and waiting + request.tokens > self._queue_tokens:
            raise queue_full(waiting / self.tokens_per_second / len(self.engines))
        self.queue.put(request)
        self._wake.set()
        try:
            with self._metrics.span("engine"):
                await request.done
        finally:
            self.queue.drop(request)
        return [vectors for vectors in request.vectors if vectors is not None]

    async def _run_engine(self, number: int) -> None:
        """Keep one engine running. Ends only by an exception, for example if none can start."""
        if number == self._express:
            # It would only delay the start of the engine that takes all requests.
            await self._first_started.wait()
        niceness = 0 if self._express in (None, number) else YIELDING_NICENESS
        while True:
            engine = EngineProcess(self._make, self._width, niceness=niceness)
            self.engines[number] = engine
            try:
                with ThreadPoolExecutor(1, thread_name_prefix=f"engine-{number}") as thread:
                    try:
                        await self._run_until_death(number, engine, thread)
                    finally:
                        # The thread is free after this.
                        await _end(engine)
            finally:
                self.engines[number] = None
                engine.close()

    async def _run_until_death(
        self, number: int, engine: EngineProcess, thread: ThreadPoolExecutor
    ) -> None:
        """Run batches in one engine until it dies. Raises EngineDied if it does not start."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(thread, engine.wait_until_ready, self._start_seconds)
        except EngineDied as error:
            self.start_error = str(error)
            raise
        # The death of an idle engine is noticed at once, and not by the next request.
        loop.add_reader(engine.sentinel, self._wake.set)
        self._set_alive(self.alive | {number})
        self._first_started.set()
        try:
            await self._run_batches(number, engine, thread)
        except EngineDied as error:
            log_event("engine died", {"engine": number, "reason": str(error)})
            self._metrics.restarts.inc()
        finally:
            self._set_alive(self.alive - {number})
            loop.remove_reader(engine.sentinel)

    def _set_alive(self, alive: set[int]) -> None:
        """Note that an engine has started or ended."""
        self.alive = alive
        loop = asyncio.get_running_loop()
        self._alone_since = None
        if alive == {self._express}:
            self._alone_since = loop.time()
            loop.call_later(self._restart_seconds, self._wake.set)
        # The others may now have to take requests that they did not take before.
        self._wake.set()
        if self._restart_timer is not None:
            self._restart_timer.cancel()
            self._restart_timer = None
        if not alive:
            # One death may be an accident: requests that wait are usually served by the next
            # engine. They do not wait long for one that cannot start.
            self._restart_timer = loop.call_later(
                self._restart_seconds, lambda: self._fail_waiting(no_engine())
            )

    async def _run_batches(
        self, number: int, engine: EngineProcess, thread: ThreadPoolExecutor
    ) -> None:
        """Give an engine batch after batch. Ends only by an exception."""
        largest = self._batch_tokens or engine.batch_tokens // 4
        limit = largest
        while True:
            if not engine.is_alive:
                raise EngineDied("the engine has ended while it was idle")
            sizes = self._sizes(number)
            if not self.queue.has_texts(sizes):
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = self.queue.take(min(limit, self._target_tokens(sizes)), sizes)
            self.num_busy += 1
            enough_memory = None
            try:
                enough_memory = await self._run_batch(engine, thread, batch)
            finally:
                self.num_busy -= 1
                if enough_memory is None:
                    # Whatever ended the batch: nobody else would answer these requests.
                    for queued in batch:
                        queued.request.fail(engine_crashed())
            # The size falls faster than it grows: a failed batch costs more than a small one.
            limit = min(largest, limit * 3 // 2) if enough_memory else max(1, limit // 2)

    def _sizes(self, number: int) -> RequestSizes:
        """Which requests an engine takes now."""
        if number != self._express:
            return RequestSizes.LARGE if self._express in self.alive else RequestSizes.ALL
        if self._alone_since is None:
            return RequestSizes.SMALL
        seconds = asyncio.get_running_loop().time() - self._alone_since
        return RequestSizes.SMALL if seconds < self._restart_seconds else RequestSizes.ALL

    def _target_tokens(self, sizes: RequestSizes) -> int:
        """The size of a batch that is soon over, but uses an engine fully."""
        target = max(MIN_BATCH_TOKENS, int(self.tokens_per_second * BATCH_SECONDS))
        if sizes is RequestSizes.SMALL:
            # A short queue is answered in several small batches, the first requests earlier.
            waiting = self.queue.count_tokens(TrafficClass.INTERACTIVE, sizes)
            target = min(target, max(SMALL_REQUEST_TOKENS, waiting // 2))
        return target

    async def _run_batch(
        self, engine: EngineProcess, thread: ThreadPoolExecutor, batch: list[QueuedText]
    ) -> bool:
        """Run a batch, or its halves if the engine fails on it. False if memory ran out."""
        batch = [queued for queued in batch if not queued.request.done.done()]
        if not batch:
            return True
        loop = asyncio.get_running_loop()
        try:
            started = time.perf_counter()
            results = await loop.run_in_executor(
                thread, _pool, engine, [queued.text for queued in batch], self._engine_seconds
            )
        except EngineFailure as failure:
            is_memory = isinstance(failure, EngineOutOfMemory)
            self._metrics.failures.labels("memory" if is_memory else "error").inc()
            if len(batch) == 1:
                batch[0].request.fail(_text_failed(batch[0].position, failure))
            else:
                middle = len(batch) // 2
                for half in (batch[:middle], batch[middle:]):
                    await self._run_batch(engine, thread, half)
            return not is_memory
        self._record(batch, started)
        for queued, (vectors, is_finite) in zip(batch, results, strict=True):
            if is_finite:
                queued.request.finish(queued.position, vectors)
            else:
                queued.request.fail(not_finite(queued.position))
        return True

    def _record(self, batch: list[QueuedText], started: float) -> None:
        seconds = time.perf_counter() - started
        tokens = sum(len(queued.text.ids) for queued in batch)
        self._metrics.record_batch(len(batch), tokens, seconds, self.queue.tokens)
        for queued in batch:
            self._metrics.queued.observe(started - queued.request.queued_at)
        # Small batches say little about the speed of full ones.
        weight = min(1.0, tokens / MIN_BATCH_TOKENS) * 0.2
        self.tokens_per_second += weight * (tokens / seconds - self.tokens_per_second)

    def _fail_waiting(self, error: ApiError) -> None:
        while batch := self.queue.take(1):
            batch[0].request.fail(error)
            self.queue.drop(batch[0].request)


async def _end(engine: EngineProcess) -> None:
    """Kill an engine and wait for its end, which takes a while if it has gigabytes to free."""
    engine.kill()
    while engine.is_alive:
        await asyncio.sleep(REAP_SECONDS)


def no_engine() -> ApiError:
    """503: no engine of the model runs."""
    return unavailable("no engine of this model is running; the server is starting one")


def _text_failed(position: int, failure: EngineFailure) -> ApiError:
    if isinstance(failure, EngineOutOfMemory):
        return out_of_memory(position)
    return ApiError(
        ErrorCode.INTERNAL_ERROR,
        f"the engine failed on input[{position}]: {failure}",
        param=f"input[{position}]",
    )


def _pool(
    engine: EngineProcess, texts: list[EngineText], seconds: float
) -> list[tuple[Float32[np.ndarray, "_ D"], bool]]:
    """The vectors of each text's spans, and whether all their numbers are finite."""
    batch = make_batch([text.ids for text in texts], [text.adapter_id for text in texts])
    offsets = batch.starts.tolist()
    starts = np.concatenate([text.starts + at for text, at in zip(texts, offsets, strict=True)])
    ends = np.concatenate([text.ends + at for text, at in zip(texts, offsets, strict=True)])
    thousands = -(-len(batch.token_ids) // 1_000)
    pooled = engine.pool(batch, starts, ends, seconds=seconds * thousands)
    is_finite = np.isfinite(pooled).all(1)
    cuts = np.cumsum([len(text.starts) for text in texts])[:-1]
    results = zip(np.split(pooled, cuts), np.split(is_finite, cuts), strict=True)
    return [(vectors, bool(finite.all())) for vectors, finite in results]
