"""An engine that dies or hangs is restarted, and nothing else is harmed."""

import os
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from polyvec.batch import make_batch
from polyvec.server import engine_process
from polyvec.server.engine_process import EngineDied, EngineProcess
from polyvec.server.key_file import KEYS_VARIABLE
from polyvec.server.limits import Limits
from polyvec.tasks import NO_ADAPTER
from tests.processes import start_server, wait_for
from tests.server.conftest import GOOD_TEXTS, check_error, check_good, embed_beside, serving
from tests.server.faults import DEATH, HANG, faulty_engine, sleeping_engine


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
    refused = faulty_server.embed("too early")
    assert check_error(refused)[0] == 503 and refused.headers["retry-after"]
    faulty_server.wait_until_ready()
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


def open_files():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.fixture
def sleeping():
    """An engine that never becomes ready."""
    engine = EngineProcess(sleeping_engine, 384)
    yield engine
    engine.close()


def test_an_engine_inherits_neither_keys_nor_the_signals_of_a_terminal(monkeypatch):
    monkeypatch.setenv(KEYS_VARIABLE, "a-secret")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    engine = EngineProcess(sleeping_engine, 384)
    try:
        # It is empty for a moment, while the program is loaded.
        wait_for(Path(f"/proc/{engine.pid}/environ").read_bytes)
        environment = Path(f"/proc/{engine.pid}/environ").read_bytes()
        assert b"SOMETHING_ELSE=kept" in environment and b"a-secret" not in environment
        assert os.getsid(engine.pid) == engine.pid != os.getsid(0)
    finally:
        engine.close()


@pytest.mark.parametrize("step", ["multiprocessing.Pipe", "os.pipe", "subprocess.Popen"])
def test_an_engine_that_cannot_be_spawned_leaves_nothing_open(monkeypatch, step):
    """No file descriptor, no process or no memory at one of the steps."""
    before = open_files()

    def fail(*_, **__):
        raise OSError("there is none left")

    module, name = step.split(".")
    here = engine_process if name == "Pipe" else getattr(engine_process, module)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="none left"):
        broken.setattr(here, name, fail)
        EngineProcess(sleeping_engine, 384)
    assert open_files() == before


def test_closing_an_engine_leaves_no_process_and_nothing_open():
    before = open_files()
    engine = EngineProcess(sleeping_engine, 384)
    os.kill(engine.pid, signal.SIGSTOP)
    assert engine.is_alive
    engine.close()
    assert not engine.is_alive and open_files() == before
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)


def test_an_engine_that_does_not_read_a_large_batch_is_killed(sleeping):
    """The batch does not fit into the connection's buffer, so sending it would wait."""
    batch = make_batch([[0] * 200_000], [NO_ADAPTER])
    with pytest.raises(EngineDied, match="does not read"):
        sleeping.pool(batch, batch.starts, batch.ends, seconds=0.2)
    assert not sleeping.is_alive


def test_an_engine_that_does_not_become_ready_is_killed(sleeping):
    with pytest.raises(EngineDied, match=r"has not answered for 0\.2 s"):
        sleeping.wait_until_ready(0.2)
    assert not sleeping.is_alive


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files are counted in /proc")
def test_a_server_without_file_descriptors_comes_back(long_model):
    """Its engine ends meanwhile, and clients connect.

    Requests are refused at once, and afterwards it has as many files and processes as before.
    """
    process, url = start_server(str(long_model), "--device", "cpu", "--engines", "1")
    body = {"model": long_model.name, "input": "a fox"}
    files = Path(f"/proc/{process.pid}/fd")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    usual = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    try:
        with httpx.Client(base_url=url, timeout=30) as http:
            assert http.post("/v1/embeddings", json=body).status_code == 200
            before = len(list(files.iterdir()))
            # Open files stay open, and none can be added.
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4, usual[1]))
            [engine] = children.read_text().split()
            os.kill(int(engine), signal.SIGKILL)
            host, port = url.removeprefix("http://").split(":")
            late = [socket.create_connection((host, int(port))) for _ in range(5)]
            wait_for(lambda: http.get("/ready").status_code == 503)
            refused = http.post("/v1/embeddings", json=body)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert http.get("/live").status_code == 200 and process.poll() is None
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
            wait_for(lambda: http.get("/ready").status_code == 200)
            assert http.post("/v1/embeddings", json=body).status_code == 200
            assert httpx.post(f"{url}/v1/embeddings", json=body).status_code == 200
            for connection in late:
                connection.close()
            wait_for(lambda: len(list(files.iterdir())) == before)
            assert len(children.read_text().split()) == 1
    finally:
        process.terminate()
        process.wait()


def resident(pid):
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(long_model):
    """Resident memory over mixed-length requests; benchmarks/memory.py sends 100,000.

    The same requests again and again: OpenVINO keeps kernels for every shape that is new to it, up
    to a bound that a short test does not reach.
    """
    process, url = start_server(str(long_model), "--device", "cpu", "--engines", "1")
    rng = np.random.default_rng(0)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        [engine] = children
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
