"""A background task comes back, whatever ends it; if it cannot, the process ends."""

import asyncio
import json
import subprocess
import sys

import pytest

from polyvec.server import supervision
from polyvec.server.supervision import EXIT_STATUS, start_supervised, stop_supervised
from tests.processes import wait_for
from tests.server.conftest import serving


async def fail():
    raise MemoryError("no room")


async def end():
    pass


async def lose_a_future():
    """A cancellation that nobody asked for, such as that of an executor's future."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@pytest.mark.parametrize(
    ("accident", "reason"),
    [(fail, "MemoryError: no room"), (end, "it returned"), (lose_a_future, "it was cancelled")],
)
def test_a_task_that_ends_is_started_again_and_the_log_says_why(accident, reason, caplog):
    runs = []

    async def run():
        runs.append(len(runs))
        if len(runs) == 1:
            return await accident()
        await asyncio.Event().wait()

    async def main():
        supervisor = start_supervised("the task", run)
        while len(runs) < 2:
            await asyncio.sleep(0)
        await stop_supervised([supervisor])

    asyncio.run(main())
    [line] = map(json.loads, caplog.messages)
    assert (line["task"], line["reason"].startswith(reason)) == ("the task", True)


def test_a_task_that_fails_again_and_again_is_tried_for_ever_but_less_and_less_often(
    monkeypatch, caplog
):
    monkeypatch.setattr(supervision, "RESTART_DELAYS_SECONDS", (0.0, 0.001, 0.002))

    async def main():
        supervisor = start_supervised("the task", fail)
        while len(caplog.messages) < 6:
            await asyncio.sleep(0.001)
        await stop_supervised([supervisor])

    asyncio.run(main())
    delays = [json.loads(message)["restart_s"] for message in caplog.messages[:6]]
    assert delays == [0.0, 0.001, 0.002, 0.002, 0.002, 0.002]


def test_a_task_that_ran_for_long_starts_again_at_once(monkeypatch, caplog):
    monkeypatch.setattr(supervision, "RESTART_DELAYS_SECONDS", (0.0, 3_600.0))
    monkeypatch.setattr(supervision, "RESET_SECONDS", -1.0)

    async def main():
        supervisor = start_supervised("the task", end)
        while len(caplog.messages) < 3:
            await asyncio.sleep(0)
        await stop_supervised([supervisor])

    asyncio.run(main())


def test_stopping_waits_until_the_task_has_cleaned_up():
    events = []

    async def run():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("clean")

    async def main():
        supervisor = start_supervised("the task", run)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await stop_supervised([supervisor])
        events.append("stopped")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert events == ["clean", "stopped"]


def test_a_supervision_that_cannot_go_on_ends_the_process():
    """Whoever started the server sees the status and starts it again."""
    program = """
import asyncio
from polyvec.server import supervision
async def main():
    supervision.start_supervised("the task", asyncio.Event().wait)
    await asyncio.sleep(3600)
supervision.asyncio.wait = None
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == EXIT_STATUS != 0
    assert "cannot supervise" in done.stderr and "supervisor of the task" in done.stderr


def test_every_background_task_of_a_server_comes_back(tmp_path):
    """Each is cancelled from outside; the server answers again without a restart."""
    with serving(batches=tmp_path) as server:

        def tasks():
            return {task.get_name(): task for task in asyncio.all_tasks(server.loop)}

        prefix = "supervisor of "
        names = [name.removeprefix(prefix) for name in tasks() if name.startswith(prefix)]
        assert len(names) >= 2
        for name in names:
            old = tasks()[name]
            server.loop.call_soon_threadsafe(old.cancel)
            wait_for(lambda: old.done() and name in tasks())  # noqa: B023
        server.wait_until_ready()
        assert server.embed("still there").status_code == 200
