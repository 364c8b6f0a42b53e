"""Faults F9 to F14 and F17: the engine fails, in ways that real ones do."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from polyvec.server.errors import ApiError
from polyvec.server.metrics import Metrics
from polyvec.server.limits import Limits
from polyvec.server.scheduler import EngineText, Scheduler
from polyvec.tasks import NO_ADAPTER
from tests.processes import start_server, wait_for
from tests.server.conftest import check_error, serving
from tests.server.faults import DEATH, ERROR, HANG, MEMORY, NAN, SLOW, faulty_engine, missing_engine

GOOD = ["a fox", "its den", "snow"]


@pytest.fixture(scope="module")
def faulty():
    limits = Limits(engine_seconds=8.0)
    with serving(make_engine=faulty_engine, limits=limits) as running:
        yield running


def beside(server, bad):
    """Answers to a bad request and to three good ones that wait with it."""
    with ThreadPoolExecutor(8) as pool:
        # While the engine is busy with this one, the others gather into one batch.
        scheduler = server.service.models[0].scheduler
        first = pool.submit(server.embed, [[SLOW, 5]])
        wait_for(lambda: scheduler.num_busy)
        asked = pool.submit(server.embed, bad)
        good = [pool.submit(server.embed, text) for text in GOOD]
        assert first.result().status_code == 200
        return asked.result(), [one.result() for one in good]


def check(answers, library):
    for text, answer in zip(GOOD, answers, strict=True):
        assert answer.status_code == 200, answer.text
        got = np.float32(answer.json()["data"][0]["embedding"])
        np.testing.assert_allclose(got, library.encode(text)[0], atol=1e-5)


def test_a_row_of_nan_fails_alone(faulty, library):
    """F9: NaN injected in one row: that row errors, neighbours are fine."""
    bad, good = beside(faulty, [[5, 6], [NAN, 6]])
    assert check_error(bad)[0] == 500 and "input[1]" in bad.json()["detail"]
    check(good, library)


def test_nan_never_leaves_unnormalised_either(faulty):
    """F9: without normalisation nothing else would look at the numbers."""
    assert check_error(faulty.embed([[NAN]], normalized=False))[0] == 500


def test_a_batch_that_fails_is_split_until_the_culprit_is_alone(faulty, library):
    """F10: an exception in forward for one batch."""
    bad, good = beside(faulty, [[5, 6], [7], [ERROR]])
    assert check_error(bad)[0] == 500 and "input[2]" in bad.json()["detail"]
    assert "does not know" in bad.json()["detail"]
    check(good, library)


def test_out_of_memory_makes_batches_smaller_and_nothing_fails(faulty, library):
    """F11: simulated OOM: the batch halves, the server lives, and its size recovers."""
    many, good = beside(faulty, [[MEMORY, 5 + number] for number in range(16)])
    assert len(many.json()["data"]) == 16
    check(good, library)
    text = faulty.http.get("/metrics").text
    assert 'polyvec_engine_failures_total{why="memory"}' in text
    sizes = [float(line.split()[-1]) for line in text.splitlines() if "batch_texts_count" in line]
    texts = [f"text {number}" for number in range(64)]
    for _ in range(8):
        assert faulty.embed(texts).status_code == 200
    after = faulty.http.get("/metrics").text.splitlines()
    batches = [float(line.split()[-1]) for line in after if "batch_texts_count" in line]
    assert batches[0] - sizes[0] <= 12, "the last requests had whole batches again"


def test_an_engine_that_dies_fails_its_batch_and_comes_again(faulty, library):
    """F12: the worker ends itself under a batch."""
    bad, _ = beside(faulty, [[DEATH]])
    assert check_error(bad)[0] == 503 and bad.headers["retry-after"]
    faulty.wait_until_ready()
    check([faulty.embed(text) for text in GOOD], library)


def test_a_killed_engine_turns_readiness_off_and_liveness_not(faulty, library):
    """F12: the worker is killed from outside; /ready and /health say so, /live does not."""
    [model] = faulty.service.models
    old = model.scheduler.engines[0].pid
    os.kill(old, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(faulty.embed, "under way")
        wait_for(lambda: model.scheduler.num_busy)
        os.kill(old, signal.SIGKILL)
        assert check_error(waiting.result())[0] == 503
    assert faulty.http.get("/live").status_code == 200
    seen = {path: faulty.http.get(path).status_code for path in ("/ready", "/health")}
    assert seen == {"/ready": 503, "/health": 503}
    # A request that comes now waits for the new engine.
    check([faulty.embed(text) for text in GOOD], library)
    assert model.scheduler.engines[0].pid != old
    assert faulty.http.get("/health").status_code == 200


def test_an_engine_that_hangs_is_started_again(library):
    """F13: the worker hangs: timeout, readiness false, restart; what waited is served."""
    with serving(make_engine=faulty_engine, limits=Limits(engine_seconds=1.5)) as server:
        with ThreadPoolExecutor(4) as pool:
            hung = pool.submit(server.embed, [[HANG]])
            wait_for(lambda: server.service.models[0].scheduler.num_busy)
            waiting = pool.submit(server.embed, GOOD[0])
            assert check_error(hung.result())[0] == 503
            assert server.http.get("/ready").status_code == 503
            assert waiting.result().status_code == 200
        check([server.embed(text) for text in GOOD], library)


def test_an_engine_that_never_starts_is_a_503_that_says_so():
    """F12: what waits is not left waiting, and neither is what comes later."""

    async def ask():
        text = EngineText(np.int32([0, 2]), NO_ADAPTER, np.int32([0]), np.int32([2]))
        scheduler = Scheduler(missing_engine, 384, Metrics())
        scheduler.start()
        with pytest.raises(ApiError, match="does not start") as waiting:
            await scheduler.run([text])
        with pytest.raises(ApiError, match="does not start") as later:
            await scheduler.run([text])
        assert not scheduler.is_ready
        await scheduler.stop()
        return waiting.value.status, later.value.status

    assert asyncio.run(ask()) == (503, 503)


def test_a_restarted_engine_gives_the_same_bits(faulty):
    """F17: same bits after restart."""
    before = faulty.embed(GOOD[0], embedding_type="base64").json()["data"]
    os.kill(faulty.service.models[0].scheduler.engines[0].pid, signal.SIGKILL)
    wait_for(lambda: faulty.http.get("/ready").status_code == 503)
    faulty.wait_until_ready()
    assert faulty.embed(GOOD[0], embedding_type="base64").json()["data"] == before


def resident(pid):
    """A process's bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(long_model):
    """F14: resident memory over mixed-length requests; benchmarks/memory.py sends 100,000.

    The same requests again and again: OpenVINO keeps kernels for every shape that is new to it, up
    to a bound that a short test does not reach.
    """
    process, url = start_server(str(long_model), "--device", "cpu")
    rng = np.random.default_rng(0)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        # The other one is multiprocessing's small helper.
        engine = max(children, key=resident)
        with httpx.Client(base_url=url, timeout=300) as http:
            bodies = [
                {
                    "model": long_model.name,
                    "input": ["fox " * n for n in rng.integers(1, 60, rng.integers(1, 4))],
                }
                for _ in range(6)
            ]

            def ask(times):
                for body in bodies * times:
                    assert http.post("/v1/embeddings", json=body).status_code == 200

            ask(3)
            before = resident(process.pid), resident(engine)
            ask(10)
            after = resident(process.pid), resident(engine)
    finally:
        process.terminate()
        process.wait()
    # What a batch leaves behind, kept 60 times, would be more.
    assert after[0] - before[0] < 2e6 and after[1] - before[1] < 10e6, (before, after)
