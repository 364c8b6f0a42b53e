"""A server as a model: its key, its models, and what tells two of them apart."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from polyvec.eval.api_model import load_server
from polyvec.eval.models import load_model
from polyvec.eval.protocol import always


class Stub(ThreadingHTTPServer):
    """A server with OpenAI's API whose models and vectors a test sets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: Any = [{"id": "one"}, {"id": "org/two"}]
        self.key = ""
        self.shift = 0.0
        self.asked: list[dict[str, Any]] = []
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests += 1
        models = self.server.models
        self.reply({"data": models() if callable(models) else models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        vectors = [[1.0, len(text) / 10 + self.server.shift] for text in body["input"]]
        self.reply(
            {"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]}
        )

    def reply(self, answer: Any) -> None:
        key = self.server.key
        refused = key and self.headers.get("Authorization") != f"Bearer {key}"
        text = json.dumps({"error": "no"} if refused else answer).encode()
        self.send_response(401 if refused else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("polyvec.eval.api_model.CLOCK_SECONDS", 0)
    with Stub() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def revision(stub: Stub, model: str = "") -> str:
    return str(load_server(stub.url, choose=always(None), model=model).mteb_model_meta.revision)


def test_a_model_of_several_is_chosen_by_name(stub: Stub) -> None:
    model = load_model(stub.url, choose=always(None), served_model="org/two")
    assert model.mteb_model_meta.name == "polyvec/two-served"
    assert {body["model"] for body in stub.asked} == {"org/two"}
    with pytest.raises(ValueError, match="no model 'three'; its models are: one, org/two"):
        load_model(stub.url, served_model="three")


def test_a_key_is_sent_and_its_lack_is_explained(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.key = "secret"
    with pytest.raises(ValueError, match=r"answered 401.*--api-key"):
        load_model(stub.url)
    load_model(stub.url, key="secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    load_model(stub.url)


def test_another_model_behind_the_same_address_has_another_revision(stub: Stub) -> None:
    before = revision(stub)
    assert revision(stub) == before
    assert revision(stub, "org/two") != before
    stub.shift = 0.1
    assert revision(stub) != before
    stub.shift = 0.0
    assert revision(stub) == before
    stub.models = [{"id": "one", "created": 5}]
    told = revision(stub)
    stub.models = [{"id": "one", "created": 6}]
    assert len({before, told, revision(stub)}) == 3


def test_a_field_that_is_the_time_of_the_request_does_not_count(stub: Stub) -> None:
    before = revision(stub)
    stub.models = lambda: [{"id": "one", "created": stub.requests}]
    assert revision(stub) == before


@pytest.mark.parametrize("models", [None, "none", [{}]])
def test_a_server_without_a_list_of_models_is_refused(stub: Stub, models: object) -> None:
    stub.models = models
    with pytest.raises(ValueError, match=r"list of models|no model ''"):
        load_server(stub.url)


def test_an_address_where_nothing_answers_is_named() -> None:
    with pytest.raises(ValueError, match=r"no server answers at http://127\.0\.0\.1:9/v1/models"):
        load_server("http://127.0.0.1:9/v1")
