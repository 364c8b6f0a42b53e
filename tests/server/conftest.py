"""A running server: real sockets, the bundled model, its engine in a process of its own."""

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from polyvec import Encoder
from polyvec.checkpoint import save_checkpoint
from polyvec.server.limits import Limits
from polyvec.server.run import listen_for_admin, make_server, make_service
from tests.processes import wait_for
from tests.server.faults import SLOW, faulty_engine, frame

MODEL = "jina-embeddings-v3"

TEXTS = ["Where does the cat sleep?", "Die Katze schläft auf dem Stuhl.", "Brot backen"]

GOOD_TEXTS = ["a fox", "its den", "snow"]
"""Texts with which the faulty engine does not fail."""


class Running:
    """A server in a thread: its address, a client, and its internals for tests of faults."""

    def __init__(self, service, server, loop, url, verify, admin_url):
        self.service = service
        self.server = server
        self.loop = loop
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=300, verify=verify)
        self.admin_url = admin_url

    def embed(self, texts, **fields):
        """Embed texts, or token ids, which `frame` puts between `<s>` and `</s>`."""
        texts = frame(texts) if isinstance(texts, list) else texts
        return self.http.post("/v1/embeddings", json={"model": MODEL, "input": texts, **fields})

    def error(self, body, *, path="/v1/embeddings"):
        """The status and the message of an error, whose form is checked."""
        if isinstance(body, bytes):
            answer = self.http.post(
                path, content=body, headers={"content-type": "application/json"}
            )
        else:
            answer = self.http.post(path, json={"model": MODEL, **body})
        return check_error(answer)

    def read_metrics(self):
        lines = self.http.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def connect(self):
        """A socket that is connected to the server."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)

    def wait_until_ready(self):
        wait_for(lambda: self.http.get("/ready").status_code == 200)


def check_error(answer):
    """The status and the message of an error, which must have what all clients read."""
    body = answer.json()
    assert answer.status_code >= 400
    assert isinstance(body["detail"], str) and body["detail"]
    assert body["error"]["message"] == body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, body["detail"]


def read_vectors(answer):
    """The vectors of an answer, in the order of the texts."""
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    return np.array([row["embedding"] for row in data], np.float32)


def embed_beside(server, bad):
    """The answer to a request that fails, and the answers to three good ones in its batch."""
    with ThreadPoolExecutor(8) as pool:
        # While the engine is busy with this one, the others gather into one batch.
        scheduler = server.service.models[0].scheduler
        first = pool.submit(server.embed, [[SLOW, 5]])
        wait_for(lambda: scheduler.num_busy)
        failing = pool.submit(server.embed, bad)
        good = [pool.submit(server.embed, text) for text in GOOD_TEXTS]
        assert first.result().status_code == 200
        return failing.result(), [one.result() for one in good]


def check_good(answers, library):
    """Check that the answers have the vectors of `GOOD_TEXTS`."""
    for text, answer in zip(GOOD_TEXTS, answers, strict=True):
        np.testing.assert_allclose(read_vectors(answer), library.encode(text), atol=1e-5)


@contextmanager
def serving(model="mini", *, more=(), precision="float32", tls=None, admin=False, **options):
    """Run a server with `make_service`'s options; in float32, so that batches agree anywhere.

    `tls` is the context of its client, and the files of its certificate and key. With `admin`, it
    has the operator's routes.
    """
    models = [str(model), *map(str, more)]
    service = make_service(models, aliases=[MODEL], precision=precision, **options)
    verify, cert, key = tls or (True, None, None)
    with listen_for_admin(0) if admin else nullcontext() as listener:
        server = make_server(service, "127.0.0.1", 0, tls_cert=cert, tls_key=key, admin=listener)
        admin_url = f"http://127.0.0.1:{listener.getsockname()[1]}" if listener else None
        loops = []

        async def run():
            loops.append(asyncio.get_running_loop())
            await server.serve()

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            assert thread.is_alive()
            port = server.servers[0].sockets[0].getsockname()[1]
            url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            running = Running(service, server, loops[0], url, verify, admin_url)
            with running.http:
                running.wait_until_ready()
                yield running
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def server():
    """The server that most tests share."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def faulty_server():
    """A server whose engine fails on request."""
    with serving(make_engine=faulty_engine, limits=Limits(engine_seconds=8.0)) as running:
        yield running


@pytest.fixture(scope="session")
def library():
    """The same model without a server."""
    return Encoder.load(precision="float32")


@pytest.fixture(scope="session")
def long_model(tiny_config, tiny_weights, tiny_model, tmp_path_factory):
    """The tiny model with a maximum of 1,024 tokens, which it encodes in a moment."""
    folder = tmp_path_factory.mktemp("models") / "long"
    save_checkpoint(folder, replace(tiny_config, max_tokens=1_024), tiny_weights)
    (folder / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="session")
def long_library(long_model):
    """The long model without a server."""
    return Encoder.load(long_model, device="cpu", precision="float32")


@pytest.fixture(scope="session")
def long_server(long_model):
    """A server of the long model."""
    with serving(long_model, device="cpu") as running:
        yield running


@pytest.fixture(scope="session")
def headed_model(tiny_config, tiny_weights, tiny_model, tmp_path_factory):
    """The tiny model with a sparse and a multi-vector head."""
    folder = tmp_path_factory.mktemp("models") / "headed"
    rng = np.random.default_rng(3)
    width = tiny_config.width
    shapes = {"sparse.weight": (1, width), "sparse.bias": (1,)}
    shapes |= {"multi_vector.weight": (12, width), "multi_vector.bias": (12,)}
    heads = {name: rng.normal(size=size).astype(np.float32) for name, size in shapes.items()}
    config = replace(tiny_config, sparse_head=True, multi_vector_dim=12)
    save_checkpoint(folder, config, {**tiny_weights, **heads})
    (folder / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="session")
def headed(headed_model):
    """A server of a model with heads, and the same model without a server."""
    encoder = Encoder.load(headed_model, device="cpu", precision="float32")
    with serving(headed_model, device="cpu") as running:
        yield running, encoder


@pytest.fixture(scope="session")
def jina_schema():
    """Check a value against one of the schemas of Jina's OpenAPI document."""
    document = json.loads((Path(__file__).parent / "jina-schemas.json").read_text("utf-8"))

    def check(name, value):
        schema = {"$ref": f"#/components/schemas/{name}", **document}
        Draft202012Validator(schema).validate(value)

    return check
