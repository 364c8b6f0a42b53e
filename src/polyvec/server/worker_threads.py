"""Threads for long computations, in which clients have turns.

The event loop never computes for long, and a client that sends much work delays other clients by
one piece of it at most.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import TypeVar

Result = TypeVar("Result")

CLIENT: ContextVar[Hashable] = ContextVar("CLIENT", default=None)
"""The client of the request that runs: the name of its API key, or its connection."""


class FairThreads:
    """A few threads. Clients whose work waits for a thread have turns.

    Work is best given in pieces of less than 0.1 s, because a piece that runs is not interrupted.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._num_idle = num_threads
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """The turns that each client waits for. The next client is the first one."""

    async def run(self, function: Callable[[], Result]) -> Result:
        """The result of a function, which runs in a thread when it is the client's turn."""
        await self._wait_for_turn()
        loop = asyncio.get_running_loop()
        work = self._pool.submit(function)

        def end_turn(_: Future[Result]) -> None:
            # The loop may be closed before the last thread ends.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end_turn)

        work.add_done_callback(end_turn)
        return await asyncio.wrap_future(work)

    def stop(self) -> None:
        """End the threads after the work that they do now."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _wait_for_turn(self) -> None:
        if self._num_idle:
            self._num_idle -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(CLIENT.get(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._end_turn()
            raise

    def _end_turn(self) -> None:
        """Give the thread to the next client that waits."""
        while self._waiting:
            client = next(iter(self._waiting))
            turns = self._waiting.pop(client)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._num_idle += 1
