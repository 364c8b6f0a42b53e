"""Background tasks that run as long as the server does.

1. The coroutine function of a background task never returns on its own. Whatever ends it, it is
   started again: at once the first time, and then after a delay that grows up to a few seconds.
2. The log has one line for each end, with its reason.
3. If the supervision itself fails, the process ends with `EXIT_STATUS`, so that whoever started the
   server starts it again. A server without one of its tasks would look healthy and do nothing.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Any, NoReturn

from polyvec.server.metrics import log_event

RESTART_DELAYS_SECONDS = (0.0, 0.5, 2.0, 5.0)
"""Delays before a task is started again; the last one applies to all further restarts."""

RESET_SECONDS = 60.0
"""A task that has run for this long starts again with the first delay."""

EXIT_STATUS = 70
"""Exit status of the process if a supervision fails: EX_SOFTWARE of sysexits.h."""

BackgroundTask = Callable[[], Coroutine[Any, Any, None]]


def start_supervised(name: str, run: BackgroundTask) -> asyncio.Task[NoReturn]:
    """Run `run` until `stop_supervised` is called with the task that is returned."""
    supervisor = asyncio.create_task(supervise(name, run), name=f"supervisor of {name}")
    supervisor.add_done_callback(_end_process_unless_stopped)
    return supervisor


async def stop_supervised(supervisors: Sequence[asyncio.Task[NoReturn]]) -> None:
    """Stop background tasks, and wait until they have cleaned up."""
    for supervisor in supervisors:
        supervisor.cancel()
    await asyncio.gather(*supervisors, return_exceptions=True)


async def supervise(name: str, run: BackgroundTask) -> NoReturn:
    """Run `run` again and again. Cancelling this is the only way to stop it."""
    failures = 0
    while True:
        started = time.monotonic()
        # In a task of its own: a cancellation that comes from inside is an end like any other.
        reason = await _run_once(asyncio.create_task(run(), name=name))
        if time.monotonic() - started > RESET_SECONDS:
            failures = 0
        delay = RESTART_DELAYS_SECONDS[min(failures, len(RESTART_DELAYS_SECONDS) - 1)]
        failures += 1
        log_event("background task ended", {"task": name, "reason": reason, "restart_s": delay})
        await asyncio.sleep(delay)


async def _run_once(task: asyncio.Task[None]) -> str:
    """The reason for which a task ended."""
    try:
        await asyncio.wait({task})
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    return "it returned" if error is None else _describe(error)


def _describe(error: BaseException) -> str:
    """An error in one line: its type, message and origin."""
    origin = [f"{Path(at.filename).name}:{at.lineno}" for at in extract_tb(error.__traceback__)]
    return f"{type(error).__name__}: {error} ({' > '.join(origin[-3:])})"


def _end_process_unless_stopped(supervisor: asyncio.Task[NoReturn]) -> None:
    if supervisor.cancelled():
        return
    error = supervisor.exception()
    reason = "it returned" if error is None else _describe(error)
    fields = {"task": supervisor.get_name(), "reason": reason}
    log_event("the server ends: it cannot supervise a task", fields, level=logging.CRITICAL)
    # Not `sys.exit`: that would wait for requests, threads and engines, which may need the task.
    # Engines end when their connection to this process closes.
    os._exit(EXIT_STATUS)
