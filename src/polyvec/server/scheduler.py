"""Dynamic batching: texts of all requests and tasks share batches, in fair turns.

1. A request's texts wait as one *job*, longest first, so that neighbours in a batch are alike.
2. Whenever an engine is idle it takes what is there, at once: each job in turn gives texts of up
   to `TURN_TOKENS`, until the batch is full. A single text behind ten thousand waits for one
   batch, not for all of them.
3. A batch is as large as an engine finishes in a tenth of a second, within bounds.
4. A batch that fails is split until the text at fault is alone; one that lacks memory is split
   too, and the next ones stay small for a while.

Everything here runs on the event loop, which only moves references: the arrays are made, and the
engine's process is waited for, in one thread an engine.

Axes in this file: T tokens of one text, S spans, D width.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from polyvec.batch import make_batch
from polyvec.server.engine_process import (
    EngineFailure,
    EngineGone,
    EngineMaker,
    EngineNoMemory,
    EngineProcess,
)
from polyvec.server.errors import ApiError, busy, unavailable
from polyvec.server.metrics import Metrics, log

TURN_TOKENS = 256
"""What one job gives before it is the next one's turn."""

BATCH_SECONDS = 0.1
"""How long a batch should take: what a text waits at most, beyond its turn, in a busy server."""

MIN_BATCH_TOKENS = 512
"""Below this an engine wastes its time."""

RESTART_SECONDS = (0.0, 0.5, 2.0, 10.0)
"""Waits before an engine is started again, the last one for ever after."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A text as the engine reads it, and the spans of it that become vectors."""

    ids: Int32[np.ndarray, " T"]
    """The token ids, special tokens and instruction included."""

    row: int
    """The adapter's row."""

    starts: Int32[np.ndarray, " S"]
    """Where each span starts among the text's tokens."""

    ends: Int32[np.ndarray, " S"]
    """Where each span ends."""


def whole(ids: Int32[np.ndarray, " T"], row: int) -> Text:
    """A text that becomes one vector."""
    return Text(ids, row, np.zeros(1, np.int32), np.full(1, len(ids), np.int32))


class Job:
    """One request's texts, and the vectors found so far."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = texts
        self.waiting = deque(sorted(range(len(texts)), key=lambda i: -len(texts[i].ids)))
        self.tokens = sum(len(text.ids) for text in texts)
        """Tokens that wait."""
        self.vectors: list[Float32[np.ndarray, "_ D"] | None] = [None] * len(texts)
        self.left = len(texts)
        self.since = time.perf_counter()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next_tokens(self) -> int:
        """Tokens of the text whose turn is next."""
        return len(self.texts[self.waiting[0]].ids)

    def take(self) -> "Entry":
        """The text whose turn is next."""
        position = self.waiting.popleft()
        self.tokens -= len(self.texts[position].ids)
        return Entry(self, position)

    def finish(self, position: int, vectors: Float32[np.ndarray, "S D"]) -> None:
        """Keep one text's vectors."""
        self.vectors[position] = vectors
        self.left -= 1
        if self.left == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: ApiError) -> None:
        """Give up on the job."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One text of a job, on its way through an engine."""

    job: Job
    position: int

    @property
    def text(self) -> Text:
        """What the engine reads."""
        return self.job.texts[self.position]


class FairQueue:
    """Jobs that wait, and whose turn it is."""

    def __init__(self) -> None:
        self._jobs = deque[Job]()
        self.tokens = 0
        """Tokens of all waiting texts."""

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Add a job; its turn comes after all others'."""
        self._jobs.append(job)
        self.tokens += job.tokens

    def drop(self, job: Job) -> None:
        """Forget what still waits of a job."""
        if job in self._jobs:
            self._jobs.remove(job)
            self.tokens -= job.tokens
        job.waiting.clear()
        job.tokens = 0

    def take(self, max_tokens: int) -> list[Entry]:
        """The next batch: of at most `max_tokens`, or one text that is longer than that."""
        entries: list[Entry] = []
        room = max_tokens
        while self._jobs:
            job = self._jobs[0]
            turn = TURN_TOKENS
            while job.waiting and ((turn > 0 and job.next_tokens() <= room) or not entries):
                entry = job.take()
                entries.append(entry)
                turn -= len(entry.text.ids)
                room -= len(entry.text.ids)
                self.tokens -= len(entry.text.ids)
            if not job.waiting:
                self._jobs.popleft()
            elif turn > 0:
                # Its next text did not fit: it comes first in the next batch.
                break
            else:
                self._jobs.rotate(-1)
            if room <= 0:
                break
        return entries


class Scheduler:
    """Takes jobs, runs them on one or more engine processes, and keeps those alive."""

    def __init__(
        self,
        make: EngineMaker,
        width: int,
        metrics: Metrics,
        *,
        num_engines: int = 1,
        queue_tokens: int = 1_000_000,
        batch_tokens: int | None = None,
        engine_seconds: float = 30.0,
        start_seconds: float = 300.0,
    ) -> None:
        """Nothing starts before `start`.

        `queue_tokens` may wait; `batch_tokens` bounds a batch, by default at a quarter of what the
        engine asks for. An engine that has not answered for `engine_seconds`, times the thousands
        of tokens it was given, is started again.
        """
        self.queue = FairQueue()
        self.num_alive = 0
        self.num_busy = 0
        self.engines: list[EngineProcess | None] = [None] * num_engines
        self.tokens_per_second = 5_000.0
        """A running estimate for one engine."""
        self._make = make
        self._width = width
        self._metrics = metrics
        self._queue_tokens = queue_tokens
        self._batch_tokens = batch_tokens
        self._engine_seconds = engine_seconds
        self._start_seconds = start_seconds
        self._broken = False
        self._work = asyncio.Event()
        self._lanes: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether an engine is there to run a batch."""
        return self.num_alive > 0

    def start(self) -> None:
        """Start the engines; `is_ready` tells when the first one is."""
        for number in range(len(self.engines)):
            self._lanes.append(asyncio.create_task(self._lane(number)))

    async def stop(self) -> None:
        """End the engines, and fail what still waits."""
        for lane in self._lanes:
            lane.cancel()
        for engine in filter(None, self.engines):
            engine.stop()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        self._fail_waiting(unavailable("the server stops"))

    async def run(self, texts: Sequence[Text]) -> list[Float32[np.ndarray, "_ D"]]:
        """Each text's span vectors, as the engine gives them: neither cut nor normalised.

        If the caller is cancelled, what still waits is dropped. Raises ApiError: 429 if the queue
        is full, 503 if the engine died under the texts, 500 if it cannot read one of them.
        """
        if self._broken:
            raise unavailable("the engine does not start; the server's log says why")
        job = Job(texts)
        if self.queue.tokens and self.queue.tokens + job.tokens > self._queue_tokens:
            raise busy(self.queue.tokens / self.tokens_per_second / len(self.engines))
        self.queue.put(job)
        self._work.set()
        try:
            with self._metrics.span("engine"):
                await job.done
        finally:
            self.queue.drop(job)
        return [vectors for vectors in job.vectors if vectors is not None]

    async def _lane(self, number: int) -> None:
        """Keep one engine alive and busy."""
        failures = 0
        with ThreadPoolExecutor(1, thread_name_prefix=f"engine-{number}") as thread:
            while True:
                await asyncio.sleep(RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)])
                try:
                    engine = await self._start_engine(number, thread)
                except EngineGone as error:
                    failures += 1
                    log("engine lost", {"engine": number, "why": str(error)})
                    # Once may be an accident, and what waits goes on waiting.
                    self._broken = failures > 1 and self.num_alive == 0
                    if self._broken:
                        self._fail_waiting(unavailable(f"the engine does not start: {error}"))
                    continue
                failures, self._broken = 0, False
                self.num_alive += 1
                loop = asyncio.get_running_loop()
                # An idle engine that dies is noticed at once, not by the next request.
                loop.add_reader(engine.sentinel, self._work.set)
                try:
                    await self._feed(engine, thread)
                except EngineGone as error:
                    log("engine lost", {"engine": number, "why": str(error)})
                    self._metrics.restarts.inc()
                finally:
                    loop.remove_reader(engine.sentinel)
                    self.num_alive -= 1
                    self.engines[number] = None
                    engine.stop()

    async def _start_engine(self, number: int, thread: ThreadPoolExecutor) -> EngineProcess:
        engine = EngineProcess(self._make, self._width)
        # Known before it is ready, so that `stop` can end it while it starts.
        self.engines[number] = engine
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(thread, engine.wait_until_ready, self._start_seconds)
        return engine

    async def _feed(self, engine: EngineProcess, thread: ThreadPoolExecutor) -> None:
        """Give an engine batch after batch. Ends only by an exception."""
        largest = self._batch_tokens or engine.batch_tokens // 4
        limit = largest
        while True:
            while not self.queue and engine.is_alive:
                self._work.clear()
                await self._work.wait()
            if not engine.is_alive:
                raise EngineGone("the engine has ended while it was idle")
            wanted = max(MIN_BATCH_TOKENS, int(self.tokens_per_second * BATCH_SECONDS))
            entries = self.queue.take(min(limit, wanted))
            self.num_busy += 1
            try:
                enough_memory = await self._run(engine, thread, entries)
            except EngineGone:
                for entry in entries:
                    entry.job.fail(unavailable("the engine ended and is started again; try again"))
                raise
            finally:
                self.num_busy -= 1
            # Twice as fast down as up: a batch that failed costs more than a small one.
            limit = min(largest, limit * 3 // 2) if enough_memory else max(1, limit // 2)

    async def _run(
        self, engine: EngineProcess, thread: ThreadPoolExecutor, entries: list[Entry]
    ) -> bool:
        """Run texts, in halves if the engine refuses them together. False if memory ran out."""
        entries = [entry for entry in entries if not entry.job.done.done()]
        if not entries:
            return True
        loop = asyncio.get_running_loop()
        try:
            began = time.perf_counter()
            parts = await loop.run_in_executor(
                thread, _pool, engine, [entry.text for entry in entries], self._engine_seconds
            )
        except EngineFailure as failure:
            no_memory = isinstance(failure, EngineNoMemory)
            self._metrics.failures.labels("memory" if no_memory else "error").inc()
            if len(entries) == 1:
                entries[0].job.fail(_refused(entries[0], failure))
            else:
                middle = len(entries) // 2
                for half in (entries[:middle], entries[middle:]):
                    await self._run(engine, thread, half)
            return not no_memory
        self._note(entries, began)
        for entry, (vectors, finite) in zip(entries, parts, strict=True):
            if finite:
                entry.job.finish(entry.position, vectors)
            else:
                entry.job.fail(not_finite(entry.position))
        return True

    def _note(self, entries: list[Entry], began: float) -> None:
        seconds = time.perf_counter() - began
        tokens = sum(len(entry.text.ids) for entry in entries)
        self._metrics.batch(len(entries), tokens, seconds, self.queue.tokens)
        for entry in entries:
            self._metrics.queued.observe(began - entry.job.since)
        # Small batches say little about the speed of full ones.
        weight = min(1.0, tokens / MIN_BATCH_TOKENS) * 0.2
        self.tokens_per_second += weight * (tokens / seconds - self.tokens_per_second)

    def _fail_waiting(self, error: ApiError) -> None:
        while entries := self.queue.take(1):
            entries[0].job.fail(error)
            self.queue.drop(entries[0].job)


def not_finite(position: int) -> ApiError:
    """500: the model itself is at fault, for one text."""
    return ApiError(
        500,
        "INTERNAL_ERROR",
        f"the model gave NaN or infinite numbers for input[{position}]; leave that text out",
        param=f"input[{position}]",
    )


def _refused(entry: Entry, failure: EngineFailure) -> ApiError:
    if isinstance(failure, EngineNoMemory):
        return unavailable(f"there is no memory for the text input[{entry.position}]; shorten it")
    return ApiError(
        500,
        "INTERNAL_ERROR",
        f"the engine failed on input[{entry.position}]: {failure}",
        param=f"input[{entry.position}]",
    )


def _pool(
    engine: EngineProcess, texts: list[Text], seconds: float
) -> list[tuple[Float32[np.ndarray, "_ D"], bool]]:
    """Each text's span vectors, and whether all their numbers are finite."""
    batch = make_batch([text.ids for text in texts], [text.row for text in texts])
    offsets = batch.starts.tolist()
    starts = np.concatenate([text.starts + at for text, at in zip(texts, offsets, strict=True)])
    ends = np.concatenate([text.ends + at for text, at in zip(texts, offsets, strict=True)])
    thousands = -(-len(batch.token_ids) // 1_000)
    pooled = engine.pool(batch, starts, ends, seconds=seconds * thousands)
    finite = np.isfinite(pooled).all(1)
    cuts = np.cumsum([len(text.starts) for text in texts])[:-1]
    parts = zip(np.split(pooled, cuts), np.split(finite, cuts), strict=True)
    return [(vectors, bool(good.all())) for vectors, good in parts]
