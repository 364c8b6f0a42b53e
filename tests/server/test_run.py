"""A server starts with its models, and stops without losing a request."""

import http.client
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from polyvec import Encoder
from polyvec.server.limits import Limits
from polyvec.server.run import make_service
from tests.processes import start_server, wait_for
from tests.server.conftest import MODEL, TEXTS, check_error, serving


def test_a_slow_request_is_cut_off(monkeypatch):
    """A slow client is disconnected while it sends the head or the body (slow loris)."""
    from polyvec.server import protocol

    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    with serving(limits=Limits(read_seconds=0.3)) as server:
        with server.connect() as connection:
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 408
        with server.connect() as connection:
            began = time.monotonic()
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost:")
            assert connection.recv(100) == b"" and time.monotonic() - began < 10


def test_sigterm_drains_and_sigkill_leaves_nothing_behind():
    """SIGTERM finishes the requests in progress, and later ones are 503, under python -O too.

    After SIGKILL a new server starts cleanly, and no engine process is left.
    """
    body = {"model": "polyvec-mini", "input": [f"text number {n}" for n in range(1_500)]}
    process, url = start_server(optimise=True)
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=300) as late:
        assert late.get("/live").status_code == 200
        assert check_error(late.post("/v1/embeddings", json={"model": "x", "input": ""}))[0] == 400
        working = pool.submit(httpx.post, f"{url}/v1/embeddings", json=body, timeout=300)
        wait_for(lambda: "polyvec_requests_running 1.0" in late.get("/metrics").text)
        wait_for(lambda: "polyvec_queue_tokens 0.0" not in late.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: late.get("/ready").status_code == 503)
        refused = late.post("/v1/embeddings", json=body)
        assert check_error(refused)[0] == 503 and refused.headers["connection"] == "close"
        assert len(working.result().json()["data"]) == 1_500
    assert process.wait(300) == 0
    process, url = start_server()
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}/stat").exists() for child in children))


def test_after_sigterm_a_server_is_unready_but_answers_until_the_delay_is_over(long_model):
    """A second signal ends it at once, and its engine with it."""
    limits = Limits(shutdown_delay_seconds=3_600.0)
    with serving(long_model, device="cpu", limits=limits) as server:
        assert server.embed("a fox").headers.get("connection") != "close"
        server.loop.call_soon_threadsafe(server.server.handle_exit, signal.SIGTERM, None)
        wait_for(lambda: server.http.get("/ready").status_code == 503)
        answer = server.embed("a fox")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert server.http.get("/live").status_code == 200
        engine = server.service.models[0].scheduler.engines[0]
        server.loop.call_soon_threadsafe(server.server.handle_exit, signal.SIGTERM, None)
        wait_for(lambda: not engine.is_alive)


def test_models_and_engines_share_a_server(library, tiny_model):
    """Two models, two engine processes each; every request gets its own model's vectors."""
    tiny = Encoder.load(tiny_model, device="cpu", precision="float32")
    with serving(more=[tiny_model], num_engines=2) as server:
        name = tiny_model.name

        def ask(number):
            model = (MODEL, name)[number % 2]
            body = {"model": model, "input": TEXTS, "task": "separation"}
            data = server.http.post("/v1/embeddings", json=body).json()["data"]
            return np.float32([row["embedding"] for row in data])

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(24)))
        for number, got in enumerate(answers):
            encoder = (library, tiny)[number % 2]
            expected = encoder.encode(TEXTS, task="separation")
            np.testing.assert_allclose(got, expected, atol=1e-5)
        pids = {e.pid for model in server.service.models for e in model.scheduler.engines}
        assert len(pids) == 4
        listed = server.http.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["polyvec-mini", name, MODEL]


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="polyvec-mini"):
        make_service(["mini", "mini"])
    with pytest.raises(ValueError, match="there is no model"):
        make_service(["mini"], aliases=["a=b"])
