"""The operator adds, replaces and deletes models of a running server, and no client notices."""

import gc
import json
import os
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from polyvec import Encoder
from polyvec.checkpoint import save_checkpoint
from polyvec.server import key_reload, scheduler
from polyvec.server.engine_process import EngineProcess
from polyvec.server.key_file import load_api_keys
from polyvec.server.limits import Limits
from polyvec.server.run import listen_for_admin, make_service, run_server
from tests.processes import wait_for
from tests.server.conftest import MODEL, TEXTS, check_error, read_vectors, serving
from tests.server.faults import missing_engine, sleeping_engine
from tests.server.test_key_reload import line, writing


@pytest.fixture(scope="module")
def write_model(tiny_config, tiny_weights, tokenizer_file, tmp_path_factory):
    """A function that writes a model folder: the tiny model with some tensors changed."""

    def write(change=None, *names):
        folder = tmp_path_factory.mktemp("models") / "changed"
        changed = {name: change(tiny_weights[name]) for name in names}
        save_checkpoint(folder, tiny_config, tiny_weights | changed)
        (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
        return folder

    return write


WORDS, ADAPTERS = "embeddings.word.weight", "embeddings.word.lora_b"


@pytest.fixture(scope="module")
def other_model(write_model):
    """The tiny model with other weights."""
    return write_model(lambda weight: weight[::-1].copy(), WORDS)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """The tiny model without a server."""
    return Encoder.load(tiny_model, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def expect(tiny, other_model):
    """The vectors of the tiny model and of the other one."""
    other = Encoder.load(other_model, device="cpu", precision="float32")
    vectors = [encoder.encode(TEXTS) for encoder in (tiny, other)]
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01
    return vectors


class Operator:
    """The operator of a running server."""

    def __init__(self, server):
        self.server = server
        self.http = httpx.Client(base_url=server.admin_url, timeout=300)

    def put(self, name, path):
        return self.http.put(f"/models/{name}", json={"path": str(path)})

    def list(self):
        return self.http.get("/models").json()

    def engine(self, name):
        """The process of a model's engine."""
        return self.server.service.models_by_name[name].scheduler.engines[0].pid


@contextmanager
def operating(model, **options):
    """A server with the operator's routes, and its operator."""
    with serving(model, device="cpu", admin=True, **options) as server:
        operator = Operator(server)
        with operator.http:
            yield server, operator


@pytest.fixture(scope="module")
def shared(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    stores = {"classifiers": folder / "classifiers.sqlite", "batches": folder / "jobs"}
    with operating(tiny_model, cache_bytes=1_000_000, **stores) as pair:
        yield pair


@pytest.fixture
def running(shared, tiny_model):
    """The server that most tests share, with the tiny model alone; and its operator."""
    server, operator = shared
    yield shared
    for model in operator.list()["models"][1:]:
        assert operator.http.delete(f"/models/{model['name']}").status_code == 200
    if operator.list()["models"][0]["folder"] != str(tiny_model):
        assert operator.put("tiny", tiny_model).status_code == 200
    wait_for(lambda: not server.service.retired)


def has_ended(pid):
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture
def spawned(monkeypatch):
    """What is started in a test: the function that makes each engine, and the engine's process."""
    pairs = []

    class RecordedProcess(EngineProcess):
        def __init__(self, make, width, **options):
            super().__init__(make, width, **options)
            pairs.append((make, self.pid))

    monkeypatch.setattr(scheduler, "EngineProcess", RecordedProcess)
    return pairs


def is_close(vectors, expected):
    return np.allclose(vectors, expected, atol=1e-5)


def test_an_added_model_serves_beside_the_others(running, other_model, expect):
    server, operator = running
    before = operator.list()["models"]
    answer = operator.put("second", other_model)
    assert answer.status_code == 201, answer.text
    assert is_close(read_vectors(server.embed(TEXTS, model="second")), expect[1])
    assert is_close(read_vectors(server.embed(TEXTS)), expect[0])
    first, second = operator.list()["models"]
    assert [first] == before and first["is_default"] and first["aliases"] == [MODEL]
    assert second == answer.json() and not second["is_default"]
    assert second["folder"] == str(other_model) and second["engines_running"] == 1
    assert len(second["fingerprint"]) == 32 and second["fingerprint"] != first["fingerprint"]
    ids = [model["id"] for model in server.http.get("/v1/models").json()["data"]]
    assert ids == ["tiny", MODEL, "second"]
    assert server.http.get("/ready").json()["models"] == ["tiny", "second"]


def test_replacing_a_model_under_load_fails_no_request(running, other_model, expect):
    """Every answer is that of one model, and those after the change are the new one's."""
    server, operator = running
    pid = operator.engine("tiny")
    began, stop = threading.Event(), threading.Event()

    def ask():
        answers = []
        while not stop.is_set():
            answers.append(server.embed(TEXTS))
            began.set()
        return answers

    with ThreadPoolExecutor(4) as pool:
        try:
            clients = [pool.submit(ask) for _ in range(4)]
            assert began.wait(300)
            assert operator.put("tiny", other_model).status_code == 200
            after = [server.embed(TEXTS, model=name) for name in ("tiny", MODEL)]
        finally:
            stop.set()
    answers = [read_vectors(answer) for client in clients for answer in client.result()]
    kinds = [[is_close(vectors, one) for one in expect] for vectors in answers]
    assert all(map(any, kinds)) and any(old for old, _ in kinds)
    assert all(is_close(read_vectors(answer), expect[1]) for answer in after)
    assert operator.list()["models"][0]["is_default"]
    wait_for(lambda: has_ended(pid) and not operator.list()["stopping"])


def test_a_replaced_model_leaves_the_memory(running, other_model):
    """At once, and not only when the garbage collector comes."""
    server, operator = running
    old = weakref.ref(server.service.models[0])
    gc.disable()
    try:
        assert operator.put("tiny", other_model).status_code == 200
        wait_for(lambda: old() is None, 10)
    finally:
        gc.enable()


def test_a_request_that_has_begun_keeps_its_model(running, other_model, expect, tiny):
    """Neither a request nor the lines of a batch job meet other weights on their way."""
    server, operator = running
    pid = operator.engine("tiny")
    busy = server.service.models[0].scheduler
    lines = [{"custom_id": str(i), "body": {"input": f"{TEXTS[i % 3]} {i}"}} for i in range(40)]
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.embed, [*TEXTS, "not in the cache"])
            wait_for(lambda: busy.num_busy)
            job = server.http.post(
                "/v1/batch/embeddings", json={"model": MODEL, "input": lines}
            ).json()
            wait_for(lambda: len(server.service.users) >= 2)
            assert operator.put("tiny", other_model).status_code == 200
            assert is_close(read_vectors(server.embed(TEXTS)), expect[1])
            assert operator.list()["stopping"] == ["tiny"]
            os.kill(pid, signal.SIGCONT)
            assert is_close(read_vectors(waiting.result())[:3], expect[0])
    finally:
        if not has_ended(pid):
            os.kill(pid, signal.SIGCONT)
    path = f"/v1/batch/{job['batch_id']}"
    wait_for(lambda: server.http.get(path).json()["status"] == "completed")
    output = map(json.loads, server.http.get(f"{path}/output").text.splitlines())
    rows = [one["response"]["body"]["data"][0]["embedding"] for one in output]
    assert is_close(rows, tiny.encode([one["body"]["input"] for one in lines]))
    wait_for(lambda: has_ended(pid))


def test_what_holds_an_old_model_for_too_long_is_told_so(tiny_model, other_model, expect, tmp_path):
    """A request gets 503, a batch job fails with the reason, and the engine ends."""
    limits = Limits(retire_seconds=0.2)
    with operating(tiny_model, batches=tmp_path, limits=limits) as (server, operator):
        pid = operator.engine("tiny")
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.embed, TEXTS)
            wait_for(lambda: server.service.models[0].scheduler.num_busy)
            lines = [{"custom_id": "a", "body": {"input": TEXTS[0]}}]
            job = server.http.post(
                "/v1/batch/embeddings", json={"model": MODEL, "input": lines}
            ).json()
            wait_for(lambda: len(server.service.users) >= 2)
            assert operator.put("tiny", other_model).status_code == 200
            assert check_error(waiting.result())[0] == 503
        path = f"/v1/batch/{job['batch_id']}"
        wait_for(lambda: server.http.get(path).json()["status"] == "failed")
        assert "tiny" in server.http.get(path).json()["error"]
        wait_for(lambda: has_ended(pid) and not server.service.retired)
        assert is_close(read_vectors(server.embed(TEXTS)), expect[1])


def test_a_classifier_of_the_old_weights_is_refused(running, other_model, tiny_model):
    """It works again when its weights are back, under any name."""
    server, operator = running
    items = [{"text": text, "label": label} for text, label in zip(TEXTS, "aab", strict=True)]
    trained = server.http.post("/v1/train", json={"model": MODEL, "input": items}).json()
    ask = {"classifier_id": trained["classifier_id"], "input": TEXTS}
    assert server.http.post("/v1/classify", json=ask).status_code == 200
    assert operator.put("tiny", other_model).status_code == 200
    assert check_error(server.http.post("/v1/classify", json=ask))[0] == 409
    assert not server.http.get("/v1/classifiers").json()[0]["is_active"]
    assert operator.put("old", tiny_model).status_code == 201
    assert server.http.post("/v1/classify", json=ask).status_code == 200


def cut_config(folder, write_model):
    (folder / "config.json").write_text('{"hidden_size": ')
    return folder, "config.json"


def widen_config(folder, write_model):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": -1}))
    return folder, "layers"


def lose_tokenizer(folder, write_model):
    (folder / "tokenizer.json").unlink()
    return folder, "tokenizer.json"


def cut_weights(folder, write_model):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder, "model.safetensors"


def spoil_words(folder, write_model):
    """Weights that can be loaded, and give no vector."""
    return write_model(lambda weight: weight * np.float32("nan"), WORDS), "with no task"


def spoil_one_adapter(folder, write_model):
    def spoil(weight):
        weight = weight.copy()
        weight[-1] = np.nan
        return weight

    return write_model(spoil, ADAPTERS), "with the task "


def name_nothing(folder, write_model):
    return folder / "nothing", "there is no folder"


def name_file(folder, write_model):
    return folder / "config.json", "there is no folder"


def name_hub_model(folder, write_model):
    return "org/name", "there is no folder"


DAMAGES = [
    *(cut_config, widen_config, lose_tokenizer, cut_weights),
    *(spoil_words, spoil_one_adapter, name_nothing, name_file, name_hub_model),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_changes_nothing(running, write_model, damage, expect, spawned):
    """Neither as a new model nor as a replacement; the answer names what is wrong."""
    server, operator = running
    path, reason = damage(write_model(), write_model)
    before = operator.list()
    for name in ("tiny", "new"):
        status, message = check_error(operator.put(name, path))
        assert status == 400 and reason in message and "\n" not in message, message
    assert operator.list() == before
    assert is_close(read_vectors(server.embed(TEXTS)), expect[0])
    wait_for(lambda: all(has_ended(pid) for make, pid in spawned if str(path) in str(make)))


def test_a_model_whose_engine_does_not_start_changes_nothing(running, other_model, monkeypatch):
    server, operator = running
    before = operator.list()
    monkeypatch.setitem(server.service.load_model.keywords, "make_engine", missing_engine)
    status, message = check_error(operator.put("tiny", other_model))
    assert status == 503 and "no engine could be started" in message
    assert operator.list() == before and server.embed(TEXTS).status_code == 200


def test_a_second_change_is_refused_at_once(running, other_model, monkeypatch, spawned):
    """A change whose client leaves is undone, and the next one can begin."""
    server, operator = running
    with monkeypatch.context() as patch:
        patch.setitem(server.service.load_model.keywords, "make_engine", sleeping_engine)
        with ThreadPoolExecutor(1) as pool:
            impatient = httpx.Client(base_url=server.admin_url, timeout=httpx.Timeout(300, read=2))
            body = {"path": str(other_model)}
            first = pool.submit(impatient.put, "/models/slow", json=body)
            wait_for(server.service.changing.locked)
            for answer in (operator.put("x", other_model), operator.http.delete("/models/slow")):
                assert check_error(answer)[0] == 409
            assert server.embed(TEXTS).status_code == 200
            with pytest.raises(httpx.ReadTimeout):
                first.result()
            impatient.close()
        wait_for(lambda: not server.service.changing.locked())
    assert all(has_ended(pid) for make, pid in spawned if make is sleeping_engine)
    assert operator.put("slow", other_model).status_code == 201


def test_a_deleted_model_is_unknown_and_its_engine_ends(running, other_model):
    server, operator = running
    assert operator.put("second", other_model).status_code == 201
    pid = operator.engine("second")
    assert operator.http.delete("/models/second").json() == {"name": "second", "deleted": True}
    answer = server.embed(TEXTS, model="second")
    assert (answer.status_code, answer.json()["code"]) == (400, "INPUT_MODEL_NOT_FOUND")
    assert check_error(operator.http.delete("/models/second"))[0] == 404
    wait_for(lambda: has_ended(pid))
    assert [model["name"] for model in operator.list()["models"]] == ["tiny"]


def test_the_default_model_and_aliases_stay(running, other_model):
    _, operator = running
    for answer in (
        operator.http.delete("/models/tiny"),
        operator.http.delete(f"/models/{MODEL}"),
        operator.put(MODEL, other_model),
    ):
        assert check_error(answer)[0] == 409
    assert operator.list()["models"][0]["aliases"] == [MODEL]
    for name in ("n" * 101, "%0a", "%20x"):
        assert check_error(operator.put(name, other_model))[0] == 400


def test_the_operator_reads_the_keys_again_at_once(tiny_model, tmp_path, monkeypatch):
    """And sees the usage of all keys, without having one."""
    monkeypatch.setattr(key_reload, "POLL_SECONDS", 3_600.0)
    monkeypatch.delenv("POLYVEC_API_KEYS", raising=False)
    path = tmp_path / "keys.txt"
    with writing(path) as file:
        file.write(line("alice"))
    with operating(tiny_model, api_keys=load_api_keys(path)) as (server, operator):

        def ask(key):
            headers = {"authorization": f"Bearer secret-{key}"}
            return server.http.get("/v1/models", headers=headers).status_code

        assert [ask("alice"), ask("bob")] == [200, 401]
        with writing(path) as file:
            file.write(line("bob"))
        assert operator.http.post("/keys/reload").json() == {"keys": ["bob"]}
        assert [ask("alice"), ask("bob")] == [401, 200]
        metrics = operator.http.get("/metrics").text
        assert 'polyvec_key_requests_total{key="bob"} 1.0' in metrics
        assert "polyvec_requests_running 0.0" in metrics and "/keys/reload" not in metrics
        path.write_text("bob")
        status, message = check_error(operator.http.post("/keys/reload"))
        assert status == 400 and "keys.txt" in message
        assert ask("bob") == 200


def test_each_address_has_its_own_routes(running):
    server, operator = running
    routes = operator.http.get("/openapi.json").json()["paths"]
    for path, methods in routes.items():
        for method in methods:
            if path not in ("/metrics", "/openapi.json"):
                answer = server.http.request(method, path.replace("{name}", "tiny"), json={})
                assert check_error(answer)[0] == 404
    assert len(routes) == 5
    assert check_error(operator.http.post("/v1/embeddings", json={"input": "a"}))[0] == 404
    assert check_error(operator.http.put("/models/x", json={"path": "mini", "more": 1}))[0] == 422
    assert check_error(operator.http.post("/keys/reload"))[0] == 400


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://127.0.0.1"}])
def test_web_pages_are_refused(running, headers):
    _, operator = running
    assert check_error(operator.http.get("/models", headers=headers))[0] == 400
    assert operator.http.get("/models", headers={"host": "localhost:1"}).status_code == 200


def test_the_operators_routes_end_with_the_server_and_undo_a_change(
    tiny_model, other_model, monkeypatch, spawned
):
    with operating(tiny_model) as (server, operator), ThreadPoolExecutor(1) as pool:
        monkeypatch.setitem(server.service.load_model.keywords, "make_engine", sleeping_engine)
        change = pool.submit(operator.put, "slow", other_model)
        wait_for(lambda: any(make is sleeping_engine for make, _ in spawned))
        server.server.should_exit = True
        assert check_error(change.result())[0] == 503
    assert all(has_ended(pid) for _, pid in spawned)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.admin_url}/models")


def test_a_port_in_use_is_one_clear_line(tiny_model):
    with listen_for_admin(0) as used:
        port = used.getsockname()[1]
        with pytest.raises(ValueError, match=f"--admin-port {port}: cannot listen"):
            run_server(make_service([str(tiny_model)]), "127.0.0.1", 0, admin_port=port)
    with pytest.raises(ValueError, match="--admin-port 65536"):
        listen_for_admin(65_536)
