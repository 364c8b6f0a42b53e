"""Long work runs in a few threads, in which clients have turns."""

import asyncio
import threading

import pytest

from polyvec.server.worker_threads import CLIENT, FairThreads


async def start(threads, client, function):
    """A task that runs a function for a client; it has asked for its turn already."""

    async def run():
        CLIENT.set(client)
        return await threads.run(function)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    return task


def test_clients_have_turns():
    """A client with one piece of work waits for one piece of the client before it, not for all."""

    async def main():
        threads, order, gate = FairThreads(1, "test"), [], threading.Event()
        tasks = [await start(threads, "many", gate.wait)]
        for number in range(4):
            tasks.append(
                await start(threads, "many", lambda number=number: order.append(("many", number)))
            )
        tasks.append(await start(threads, "one", lambda: order.append(("one", 0))))
        gate.set()
        await asyncio.gather(*tasks)
        threads.stop()
        return order

    order = asyncio.run(main())
    assert order.index(("one", 0)) <= 1
    assert [number for client, number in order if client == "many"] == [0, 1, 2, 3]


def test_work_that_is_cancelled_gives_its_turn_back():
    """A client that leaves takes no thread with it, whether it waited or ran."""

    async def main():
        threads, gate = FairThreads(1, "test"), threading.Event()
        running = await start(threads, "a", gate.wait)
        waiting = [await start(threads, name, gate.wait) for name in "abc"]
        last = await start(threads, "d", lambda: "done")
        for task in (running, *waiting):
            task.cancel()
        gate.set()
        result = await asyncio.wait_for(last, 60)
        again = await asyncio.wait_for(threads.run(lambda: "again"), 60)
        threads.stop()
        return result, again

    assert asyncio.run(main()) == ("done", "again")


def test_an_error_goes_to_the_caller_and_the_thread_stays():
    def fail():
        raise ValueError("wrong")

    async def main():
        threads = FairThreads(1, "test")
        for _ in range(3):
            with pytest.raises(ValueError, match="wrong"):
                await threads.run(fail)
        result = await threads.run(lambda: 7)
        threads.stop()
        return result

    assert asyncio.run(main()) == 7
