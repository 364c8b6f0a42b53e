"""The queue before the engines: turns between requests, and precedence over batch jobs.

1. Each request in turn gives texts of up to `TURN_TOKENS` to a batch, until it is full. A request
   of one text that comes after one of ten thousand therefore waits for one batch, and not for all
   of them.
2. Of several engines, one may take the small requests and the others the rest. A request of one
   word then waits for no long text.
3. The texts of batch jobs run while no other text waits. If other texts always wait, every
   `BACKGROUND_INTERVAL`th batch is one of batch jobs, so that the jobs go on.
4. A batch never has both, so a text of a batch job that ends the engine fails no other request. A
   text that is suspected of this has a batch of its own.

Axes in this file: T tokens of one text, S spans, D width.
"""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, Flag, auto

import numpy as np
from jaxtyping import Float32, Int32

from polyvec.server.errors import ApiError

TURN_TOKENS = 256
"""Tokens that one request gives to a batch before the next request has its turn."""

SMALL_REQUEST_TOKENS = 64
"""A request is small if it has no more tokens: a few search queries, or one paragraph."""

BACKGROUND_INTERVAL = 10
"""If both kinds of texts wait, one of this many batches has texts of batch jobs."""


class RequestSizes(Flag):
    """Which requests an engine takes."""

    SMALL = auto()
    """Those of at most `SMALL_REQUEST_TOKENS`, for whose answers clients wait."""
    LARGE = auto()
    """All others."""
    ALL = SMALL | LARGE


class TrafficClass(Enum):
    """Which requests run first, and which share batches."""

    INTERACTIVE = auto()
    """A client waits for the answer."""
    BACKGROUND = auto()
    """A line of a batch job."""
    ISOLATED = auto()
    """A line of a batch job that shares no batch, because it may be the one that ends engines."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineText:
    """One text as the engine reads it, and the spans of it that become vectors."""

    ids: Int32[np.ndarray, " T"]
    """Token ids, special tokens and instruction included."""

    adapter_id: int
    """Index of the adapter in the model's bank."""

    starts: Int32[np.ndarray, " S"]
    """First token of each span."""

    ends: Int32[np.ndarray, " S"]
    """Token after the last one of each span."""


class QueuedRequest:
    """The texts of one request, and the vectors that are ready."""

    def __init__(
        self, texts: Sequence[EngineText], traffic: TrafficClass = TrafficClass.INTERACTIVE
    ) -> None:
        self.texts = texts
        self.traffic = traffic
        self.waiting = deque(sorted(range(len(texts)), key=lambda i: -len(texts[i].ids)))
        self.tokens = sum(len(text.ids) for text in texts)
        """Tokens of the texts that wait."""
        self.vectors: list[Float32[np.ndarray, "_ D"] | None] = [None] * len(texts)
        self.num_unfinished = len(texts)
        is_small = traffic is TrafficClass.INTERACTIVE and self.tokens <= SMALL_REQUEST_TOKENS
        self.size = RequestSizes.SMALL if is_small else RequestSizes.LARGE
        self.turn = 0
        """The request with the lowest number has the next turn."""
        self.queued_at = time.perf_counter()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_isolated(self) -> bool:
        """Whether its batches have no other texts."""
        return self.traffic is TrafficClass.ISOLATED

    def next_tokens(self) -> int:
        """Number of tokens of the next text."""
        return len(self.texts[self.waiting[0]].ids)

    def take(self) -> "QueuedText":
        """Remove the next text from the waiting ones, and return it."""
        position = self.waiting.popleft()
        self.tokens -= len(self.texts[position].ids)
        return QueuedText(self, position)

    def finish(self, position: int, vectors: Float32[np.ndarray, "S D"]) -> None:
        """Keep the vectors of one text."""
        self.vectors[position] = vectors
        self.num_unfinished -= 1
        if self.num_unfinished == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: ApiError) -> None:
        """Answer the whole request with an error."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class QueuedText:
    """One text of a request, on its way through an engine."""

    request: QueuedRequest
    position: int

    @property
    def text(self) -> EngineText:
        """The text as the engine reads it."""
        return self.request.texts[self.position]


class FairQueue:
    """The requests that wait, and the order in which their texts run."""

    def __init__(self) -> None:
        self._interactive = RequestRotation()
        self._background = RequestRotation()
        self._num_passed_over = 0
        """Batches since background texts had their last turn, while they waited."""

    def __len__(self) -> int:
        return len(self._interactive) + len(self._background)

    def has_texts(self, sizes: RequestSizes = RequestSizes.ALL) -> bool:
        """Whether `take` has a batch to return."""
        return self._interactive.has_texts(sizes) or self._background.has_texts(sizes)

    @property
    def tokens(self) -> int:
        """Tokens of all texts that wait."""
        rotations = (self._interactive, self._background)
        return sum(rotation.count_tokens(RequestSizes.ALL) for rotation in rotations)

    def count_tokens(self, traffic: TrafficClass, sizes: RequestSizes = RequestSizes.ALL) -> int:
        """Tokens of the texts that wait and share a limit with a class of requests."""
        return self._rotation(traffic).count_tokens(sizes)

    def put(self, request: QueuedRequest) -> None:
        """Add a request; its turn comes after that of all others of its class."""
        self._rotation(request.traffic).put(request)

    def drop(self, request: QueuedRequest) -> None:
        """Remove the texts of a request that still wait."""
        self._rotation(request.traffic).drop(request)

    def take(self, max_tokens: int, sizes: RequestSizes = RequestSizes.ALL) -> list[QueuedText]:
        """Remove and return the next batch: at most `max_tokens`, or one longer text alone."""
        is_due = self._num_passed_over >= BACKGROUND_INTERVAL - 1
        others = self._interactive.has_texts(sizes)
        if self._background.has_texts(sizes):
            if is_due or not others:
                self._num_passed_over = 0
                return self._background.take(max_tokens, sizes)
            self._num_passed_over += 1
        return self._interactive.take(max_tokens, sizes)

    def _rotation(self, traffic: TrafficClass) -> "RequestRotation":
        return self._interactive if traffic is TrafficClass.INTERACTIVE else self._background


class RequestRotation:
    """Requests that give texts to batches in turns."""

    def __init__(self) -> None:
        # Both are in the order of their turns, so the next turn is that of one of the two heads.
        self._requests: dict[RequestSizes, deque[QueuedRequest]] = {
            size: deque() for size in RequestSizes
        }
        self._tokens = Counter[RequestSizes]()
        self._turns = itertools.count()

    def __len__(self) -> int:
        return sum(map(len, self._requests.values()))

    def count_tokens(self, sizes: RequestSizes) -> int:
        """Tokens of the texts that wait."""
        return sum(self._tokens[size] for size in sizes)

    def has_texts(self, sizes: RequestSizes) -> bool:
        """Whether `take` has a batch to return."""
        return any(self._requests[size] for size in sizes)

    def put(self, request: QueuedRequest) -> None:
        """Add a request behind all others."""
        request.turn = next(self._turns)
        self._requests[request.size].append(request)
        self._tokens[request.size] += request.tokens

    def drop(self, request: QueuedRequest) -> None:
        """Remove the texts of a request that still wait."""
        if request in self._requests[request.size]:
            self._requests[request.size].remove(request)
            self._tokens[request.size] -= request.tokens
        request.waiting.clear()
        request.tokens = 0

    def take(self, max_tokens: int, sizes: RequestSizes) -> list[QueuedText]:
        """Remove and return the next batch: at most `max_tokens`, or one longer text alone."""
        batch: list[QueuedText] = []
        room = max_tokens
        while self.has_texts(sizes) and (room > 0 or not batch):
            heads = (self._requests[size][0] for size in sizes if self._requests[size])
            request = min(heads, key=lambda head: head.turn)
            first = batch[0].request if batch else request
            if request is not first and (request.is_isolated or first.is_isolated):
                break
            turn = max_tokens if request.is_isolated else TURN_TOKENS
            while request.waiting and ((turn > 0 and request.next_tokens() <= room) or not batch):
                queued = request.take()
                batch.append(queued)
                turn -= len(queued.text.ids)
                room -= len(queued.text.ids)
                self._tokens[request.size] -= len(queued.text.ids)
            if request.waiting and turn > 0:
                # Its next text did not fit: it comes first in the next batch.
                break
            self._requests[request.size].popleft()
            if request.waiting:
                request.turn = next(self._turns)
                self._requests[request.size].append(request)
        return batch
