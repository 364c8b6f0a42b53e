"""Batches are shared fairly, and a failure stays with the text that causes it."""

import asyncio
import errno
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat

import numpy as np
import pytest

from polyvec.server import scheduler as scheduler_module
from polyvec.server import supervision
from polyvec.server.engine_process import EngineDied, EngineProcess
from polyvec.server.errors import ApiError
from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics
from polyvec.server.scheduler import EngineText, Scheduler
from polyvec.tasks import NO_ADAPTER
from tests.processes import wait_for
from tests.server.conftest import MODEL, check_error, check_good, embed_beside, serving
from tests.server.faults import ERROR, MEMORY, NAN, SLOW, faulty_engine, frame, missing_engine


def test_a_text_with_nan_fails_alone(faulty_server, library):
    """A request in the same batch gets its vectors."""
    bad, good = embed_beside(faulty_server, [[5, 6], [NAN, 6]])
    assert check_error(bad)[0] == 500 and "input[1]" in bad.json()["detail"]
    check_good(good, library)


def test_nan_is_an_error_without_normalisation_too(faulty_server):
    """Without normalisation, no other check would see the numbers."""
    assert check_error(faulty_server.embed([[NAN]], normalized=False))[0] == 500


def test_a_batch_that_fails_is_split_until_the_culprit_is_alone(faulty_server, library):
    """The engine raises an exception for one text."""
    bad, good = embed_beside(faulty_server, [[5, 6], [7], [ERROR]])
    assert check_error(bad)[0] == 500 and "input[2]" in bad.json()["detail"]
    assert "does not know" in bad.json()["detail"]
    check_good(good, library)


def test_out_of_memory_makes_batches_smaller_and_nothing_fails(faulty_server, library):
    """Batches that run out of memory are halved, and become large again later."""
    many, good = embed_beside(faulty_server, [[MEMORY, 5 + number] for number in range(16)])
    assert len(many.json()["data"]) == 16
    check_good(good, library)
    text = faulty_server.http.get("/metrics").text
    assert 'polyvec_engine_failures_total{why="memory"}' in text
    sizes = [float(line.split()[-1]) for line in text.splitlines() if "batch_texts_count" in line]
    texts = [f"text {number}" for number in range(64)]
    for _ in range(8):
        assert faulty_server.embed(texts).status_code == 200
    after = faulty_server.http.get("/metrics").text.splitlines()
    batches = [float(line.split()[-1]) for line in after if "batch_texts_count" in line]
    assert batches[0] - sizes[0] <= 12, "the last requests had whole batches again"


WIDTH = 8

TEXT = EngineText(np.int32([0, 2]), NO_ADAPTER, np.int32([0]), np.int32([2]))
LONG = EngineText(np.zeros(4_096, np.int32), NO_ADAPTER, np.int32([0]), np.int32([2]))


class ThreadEngine(EngineProcess):
    """An engine without a process: it answers at once, or dies with the first batch."""

    is_alive = True

    def __init__(self, *, dies):
        self.sentinel, self._end = os.pipe()
        self.batch_tokens = 4_096
        self.dies = dies

    def wait_until_ready(self, seconds):
        pass

    def pool(self, batch, starts, ends, *, seconds):
        if self.dies:
            self.kill()
            raise EngineDied("on purpose")
        return np.ones((len(starts), WIDTH), np.float32)

    def kill(self):
        self.is_alive = False

    def close(self):
        for file in (self.sentinel, self._end):
            os.close(file)


def run_scheduler(monkeypatch, lives, ask, **options):
    """The result of `ask(scheduler)`; each life of its engine is an exception or an engine."""
    monkeypatch.setattr(supervision, "RESTART_DELAYS_SECONDS", (0.0, 0.001))
    rest = iter(lives)

    def spawn(*_, niceness):
        life = next(rest)
        if isinstance(life, BaseException):
            raise life
        return life

    monkeypatch.setattr(scheduler_module, "EngineProcess", spawn)

    async def main():
        scheduler = Scheduler(missing_engine, WIDTH, Metrics(), **options)
        with pytest.raises(ApiError) as early:
            await scheduler.run([TEXT])
        assert early.value.status == 503 and early.value.headers["Retry-After"]
        scheduler.start()
        try:
            return await ask(scheduler)
        finally:
            await scheduler.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(main())


async def wait_ready(scheduler):
    while not scheduler.is_ready:
        await asyncio.sleep(0.001)


def test_an_engine_is_started_for_as_long_as_the_server_lives(monkeypatch):
    """Whatever is missing at the moment: descriptors, processes, threads, or memory."""
    reasons = [
        OSError(errno.EMFILE, "Too many open files"),
        BlockingIOError(errno.EAGAIN, "no more processes"),
        RuntimeError("can't start new thread"),
        MemoryError(),
        EOFError(),
        EngineDied("it does not start"),
        asyncio.CancelledError(),
    ]

    async def ask(scheduler):
        await wait_ready(scheduler)
        return await scheduler.run([TEXT])

    lives = [*reasons * 3, ThreadEngine(dies=False)]
    [vectors] = run_scheduler(monkeypatch, lives, ask)
    assert vectors.tolist() == [[1.0] * WIDTH]


def test_a_thread_that_cannot_be_started_at_one_moment_is_started_later(monkeypatch):
    start, failures = threading.Thread.start, iter([RuntimeError("can't start new thread")])

    def start_later(thread):
        for error in failures:
            raise error
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)

    async def ask(scheduler):
        await wait_ready(scheduler)
        return await scheduler.run([TEXT])

    lives = [ThreadEngine(dies=False), ThreadEngine(dies=False)]
    assert len(run_scheduler(monkeypatch, lives, ask)) == 1


async def ask_twice(scheduler):
    """The results of two requests, of which the first one ends the engine."""
    await wait_ready(scheduler)
    # More tokens than a batch has: the second request waits.
    waits = (scheduler.run([text]) for text in (LONG, TEXT))
    return await asyncio.gather(*waits, return_exceptions=True)


def test_requests_that_wait_when_the_last_engine_ends_are_served_by_the_next_one(monkeypatch):
    lives = [ThreadEngine(dies=True), ThreadEngine(dies=False)]
    first, second = run_scheduler(monkeypatch, lives, ask_twice)
    assert first.code == "SERVICE_ENGINE_CRASHED" and len(second) == 1


def test_requests_that_wait_do_not_wait_long_for_an_engine_that_does_not_start(monkeypatch):
    lives = chain([ThreadEngine(dies=True)], repeat(OSError("no processes")))
    _, second = run_scheduler(monkeypatch, lives, ask_twice, restart_seconds=0.05)
    assert (second.code, second.status) == ("SERVICE_UNAVAILABLE", 503)
    assert second.headers["Retry-After"]


def test_an_unexpected_error_fails_its_batch_and_nothing_else(monkeypatch):
    """Memory runs out in the server itself while it reads the engine's answer."""
    broken = ThreadEngine(dies=False)
    broken.pool = None

    async def ask(scheduler):
        await wait_ready(scheduler)
        [failed] = await asyncio.gather(scheduler.run([TEXT]), return_exceptions=True)
        while scheduler.engines[0] in (broken, None) or not scheduler.is_ready:
            await asyncio.sleep(0.001)
        return failed, await scheduler.run([TEXT])

    failed, served = run_scheduler(monkeypatch, [broken, ThreadEngine(dies=False)], ask)
    assert failed.status == 503 and len(served) == 1


class SlowEngine(ThreadEngine):
    """It answers a batch only when the test lets it."""

    def __init__(self):
        super().__init__(dies=False)
        self.may_answer = threading.Event()
        self.lengths = []

    def pool(self, batch, starts, ends, *, seconds):
        self.lengths.append(batch.lengths.tolist())
        assert self.may_answer.wait(60)
        return super().pool(batch, starts, ends, seconds=seconds)

    def kill(self):
        super().kill()
        self.may_answer.set()


def test_the_express_engine_answers_small_requests_beside_long_ones(monkeypatch):
    """However many long texts wait, and whatever the number of texts that they wait in."""
    general, express = SlowEngine(), ThreadEngine(dies=False)

    async def ask(scheduler):
        while len(scheduler.alive) < 2:
            await asyncio.sleep(0.001)
        long = [asyncio.ensure_future(scheduler.run([LONG, TEXT])) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(20):
            await scheduler.run([TEXT])
        assert not any(task.done() for task in long)
        general.may_answer.set()
        return await asyncio.gather(*long)

    assert len(run_scheduler(monkeypatch, [general, express], ask, num_engines=2)) == 3


def test_the_express_engine_takes_long_texts_while_no_other_engine_runs(monkeypatch):
    lives = chain(
        [ThreadEngine(dies=True), ThreadEngine(dies=False)], repeat(OSError("no processes"))
    )

    async def ask(scheduler):
        while len(scheduler.alive) < 2:
            await asyncio.sleep(0.001)
        [first] = await asyncio.gather(scheduler.run([LONG]), return_exceptions=True)
        return first, await scheduler.run([LONG])

    first, second = run_scheduler(monkeypatch, lives, ask, num_engines=2)
    assert first.code == "SERVICE_ENGINE_CRASHED" and len(second) == 1


@pytest.fixture(scope="module")
def narrow():
    """A server with a short queue."""
    limits = Limits(queue_tokens=400, items=10_000)
    with serving(make_engine=faulty_engine, limits=limits) as running:
        yield running


def post_and_leave(server, text):
    """Send a request, and return without waiting for its answer."""
    host, port = server.url.removeprefix("http://").split(":")
    body = f'{{"model": "{MODEL}", "input": {text}}}'
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)))
    # When it is closed, it is reset: a client that closes it otherwise is noticed seconds later.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def test_the_work_of_clients_that_disconnect_is_dropped(narrow, library):
    """Clients disconnect while queued and while running."""
    scheduler = narrow.service.models[0].scheduler
    running = post_and_leave(narrow, f"{frame([[SLOW, 5]])}")
    wait_for(lambda: scheduler.num_busy)
    queued = [post_and_leave(narrow, f'"queued {number}"') for number in range(20)]
    wait_for(lambda: len(scheduler.queue) == 20)
    before = narrow.http.get("/metrics").text
    for connection in (running, *queued):
        connection.close()
    wait_for(lambda: len(scheduler.queue) == 0)
    got = narrow.embed("after them").json()["data"][0]["embedding"]
    np.testing.assert_allclose(got, library.encode("after them")[0], atol=1e-5)

    def texts(page):
        return next(
            float(x.split()[1]) for x in page.splitlines() if x.startswith("polyvec_texts_total ")
        )

    done = texts(narrow.http.get("/metrics").text) - texts(before)
    assert done <= 3, "what was queued never reached the engine"
    assert narrow.service.load.running == 0 or narrow.http.get("/live").status_code == 200


def test_a_full_queue_is_answered_with_429_at_once(narrow):
    """The answer has Retry-After, and the queue does not grow."""
    scheduler = narrow.service.models[0].scheduler
    with ThreadPoolExecutor(40) as pool:
        slow = pool.submit(narrow.embed, [[SLOW] * 5])
        wait_for(lambda: scheduler.num_busy)
        text = "word " * 90

        def ask(_):
            began = time.monotonic()
            answer = narrow.embed(text)
            return answer, time.monotonic() - began

        answers = list(pool.map(ask, range(30)))
        assert slow.result().status_code == 200
    refused = [(answer, seconds) for answer, seconds in answers if answer.status_code == 429]
    assert {answer.status_code for answer, _ in answers} == {200, 429}
    for answer, _ in refused:
        assert check_error(answer)[0] == 429 and int(answer.headers["retry-after"]) >= 1
    assert scheduler.queue.tokens == 0


def test_a_big_job_does_not_starve_small_ones(server):
    """Single texts are answered while a request of 1,000 texts is in progress."""
    with ThreadPoolExecutor(1) as pool:
        big = pool.submit(server.embed, [f"number {number}" for number in range(1_000)])
        wait_for(lambda: server.service.models[0].scheduler.queue.tokens > 2_000)
        small = [server.embed(f"small {number}") for number in range(5)]
        assert all(answer.status_code == 200 for answer in small)
        assert not big.done(), "the small ones overtook it"
        assert len(big.result().json()["data"]) == 1_000
