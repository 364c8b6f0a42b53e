"""An engine that dies or hangs is restarted, and nothing else is harmed."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from polyvec.server.limits import Limits
from tests.processes import start_server, wait_for
from tests.server.conftest import GOOD_TEXTS, check_error, check_good, embed_beside, serving
from tests.server.faults import DEATH, HANG, faulty_engine


def test_an_engine_that_dies_fails_its_batch_and_restarts(faulty_server, library):
    """The engine exits while it runs a batch."""
    bad, _ = embed_beside(faulty_server, [[DEATH]])
    assert check_error(bad)[0] == 503 and bad.headers["retry-after"]
    faulty_server.wait_until_ready()
    check_good([faulty_server.embed(text) for text in GOOD_TEXTS], library)


def test_a_killed_engine_makes_the_server_unready_but_not_dead(faulty_server, library):
    """/ready and /health are 503, and /live is 200."""
    [model] = faulty_server.service.models
    old = model.scheduler.engines[0].pid
    os.kill(old, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(faulty_server.embed, "under way")
        wait_for(lambda: model.scheduler.num_busy)
        os.kill(old, signal.SIGKILL)
        assert check_error(waiting.result())[0] == 503
    assert faulty_server.http.get("/live").status_code == 200
    seen = {path: faulty_server.http.get(path).status_code for path in ("/ready", "/health")}
    assert seen == {"/ready": 503, "/health": 503}
    # A request that comes now waits for the new engine.
    check_good([faulty_server.embed(text) for text in GOOD_TEXTS], library)
    assert model.scheduler.engines[0].pid != old
    assert faulty_server.http.get("/health").status_code == 200


def test_an_engine_that_hangs_is_restarted(library):
    """The server is unready meanwhile, and answers the requests that wait afterwards."""
    with serving(make_engine=faulty_engine, limits=Limits(engine_seconds=1.5)) as server:
        with ThreadPoolExecutor(4) as pool:
            hung = pool.submit(server.embed, [[HANG]])
            wait_for(lambda: server.service.models[0].scheduler.num_busy)
            waiting = pool.submit(server.embed, GOOD_TEXTS[0])
            assert check_error(hung.result())[0] == 503
            assert server.http.get("/ready").status_code == 503
            assert waiting.result().status_code == 200
        check_good([server.embed(text) for text in GOOD_TEXTS], library)


def test_a_restarted_engine_gives_the_same_bits(faulty_server):
    """The vectors before and after a restart are equal bit for bit."""
    before = faulty_server.embed(GOOD_TEXTS[0], embedding_type="base64").json()["data"]
    os.kill(faulty_server.service.models[0].scheduler.engines[0].pid, signal.SIGKILL)
    wait_for(lambda: faulty_server.http.get("/ready").status_code == 503)
    faulty_server.wait_until_ready()
    assert faulty_server.embed(GOOD_TEXTS[0], embedding_type="base64").json()["data"] == before


def resident(pid):
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(long_model):
    """Resident memory over mixed-length requests; benchmarks/memory.py sends 100,000.

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
