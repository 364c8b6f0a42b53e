"""/v1/classify and /v1/train give the probabilities of the library and of the command line."""

import json
import sqlite3
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from polyvec import Encoder
from polyvec.checkpoint import fingerprint
from polyvec.classification import classify, learn_examples, learn_names
from polyvec.cli import app
from polyvec.model_folder import find_model
from polyvec.server.api_keys import ApiKeys, hash_keys
from polyvec.server.stores import classifiers as classifiers_module
from polyvec.server.stores import sqlite_file as sqlite_file_module
from tests.server.conftest import MODEL, TEXTS, check_error, serving


@pytest.fixture(scope="module")
def classifier_server(tmp_path_factory):
    """A server with a store of classifiers."""
    path = tmp_path_factory.mktemp("data") / "classifiers.sqlite"
    with serving(classifiers=path) as running:
        yield running


def examples(kind, number):
    return [{"text": f"{kind} number {i} is here", "label": kind} for i in range(number)]


def test_zero_shot_probabilities_are_those_of_the_library(server, library, jina_schema):
    labels = ["animals", "kitchen"]
    body = {"model": MODEL, "input": TEXTS, "labels": labels}
    answer = server.http.post("/v1/classify", json=body).json()
    jina_schema("ClassificationResponse", answer)
    expected = classify(library, learn_names(library, labels), TEXTS)
    got = [[one["score"] for one in row["predictions"]] for row in answer["data"]]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert [row["prediction"] for row in answer["data"]] == [labels[i] for i in expected.argmax(1)]
    groups = server.http.post(
        "/v1/classify", json=body | {"labels": {"what": labels, "how": ["x"]}}
    )
    jina_schema("ClassificationResponse", groups.json())
    row = groups.json()["data"][0]
    assert row["prediction"]["what"] == answer["data"][0]["prediction"]
    assert row["score"]["how"] == 1


def test_few_shot_probabilities_are_those_of_the_library(classifier_server, library):
    items = examples("bread", 4) + examples("car", 4) + examples("cat", 3)
    train = {"model": MODEL, "input": items[:6]}
    key = classifier_server.http.post("/v1/train", json=train).json()["classifier_id"]
    more = {"classifier_id": key, "input": items[6:]}
    assert classifier_server.http.post("/v1/train", json=more).status_code == 200
    ask = {"classifier_id": key, "input": TEXTS}
    answer = classifier_server.http.post("/v1/classify", json=ask).json()
    learned = learn_examples(
        library, [item["text"] for item in items], [item["label"] for item in items]
    )
    assert [one["label"] for one in answer["data"][0]["predictions"]] == learned.labels
    got = [[one["score"] for one in row["predictions"]] for row in answer["data"]]
    np.testing.assert_allclose(got, classify(library, learned, TEXTS), atol=1e-6)


def test_the_command_line_gives_the_same_probabilities(
    classifier_server, library, monkeypatch, capsys, tmp_path
):
    """Both use the same precision; by default, that of the command line depends on the CPU."""
    monkeypatch.setattr(Encoder, "load", lambda model: library)
    items = examples("bread", 4) + examples("car", 4)
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    trained = classifier_server.http.post("/v1/train", json={"model": MODEL, "input": items}).json()
    labels = ["animals", "kitchen"]
    for options, fields in (
        (["--labels", labels[0], "--labels", labels[1]], {"model": MODEL, "labels": labels}),
        (["--examples", str(file)], {"classifier_id": trained["classifier_id"]}),
    ):
        app(["classify", *TEXTS, *options, "--json"], result_action="return_value")
        lines = [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()]
        answer = classifier_server.http.post("/v1/classify", json={"input": TEXTS, **fields}).json()
        for row, scores in zip(answer["data"], lines, strict=True):
            got = {one["label"]: one["score"] for one in row["predictions"]}
            # The command line prints six digits.
            assert got == pytest.approx(scores, abs=1.5e-6)


def test_a_classifier_is_trained_used_listed_and_deleted(classifier_server, jina_schema):
    items = examples("bread", 4) + examples("car", 4)
    made = classifier_server.http.post("/v1/train", json={"model": MODEL, "input": items}).json()
    jina_schema("TrainingResponse", made)
    key = made["classifier_id"]
    ask = {"classifier_id": key, "input": ["bread and more bread", "a fast car"]}
    answer = classifier_server.http.post("/v1/classify", json=ask).json()
    jina_schema("ClassificationResponse", answer)
    assert [row["prediction"] for row in answer["data"]] == ["bread", "car"]
    more = {"classifier_id": key, "input": examples("cat", 4)}
    assert classifier_server.http.post("/v1/train", json=more).json()["num_samples"] == 4
    ask["input"] = ["the cat number 9"]
    assert (
        classifier_server.http.post("/v1/classify", json=ask).json()["data"][0]["prediction"]
        == "cat"
    )
    listed = classifier_server.http.get("/v1/classifiers").json()
    [summary] = [one for one in listed if one["classifier_id"] == key]
    jina_schema("ClassifierSummary", summary)
    counts = (summary["updated_number"], summary["used_number"], len(summary["labels"]))
    assert (summary["classifier_id"], *counts) == (key, 1, 2, 3)
    assert classifier_server.http.delete(f"/v1/classifiers/{key}").status_code == 200
    assert check_error(classifier_server.http.post("/v1/classify", json=ask))[0] == 404


def test_a_classifier_with_one_label_gives_this_label(classifier_server):
    made = classifier_server.http.post(
        "/v1/train", json={"model": MODEL, "input": examples("bread", 2)}
    )
    key = made.json()["classifier_id"]
    ask = {"classifier_id": key, "input": ["anything"]}
    [row] = classifier_server.http.post("/v1/classify", json=ask).json()["data"]
    assert (row["prediction"], row["score"]) == ("bread", 1)
    more = {"classifier_id": key, "input": examples("car", 2)}
    assert classifier_server.http.post("/v1/train", json=more).status_code == 200
    [row] = classifier_server.http.post(
        "/v1/classify", json=ask | {"input": ["car number 5"]}
    ).json()["data"]
    assert row["prediction"] == "car"


def test_a_classifier_is_refused_with_other_weights_and_used_under_another_name(
    classifier_server, monkeypatch
):
    [model] = classifier_server.service.models
    assert model.fingerprint.result() == fingerprint(find_model(None))
    post = classifier_server.http.post
    items = examples("bread", 2) + examples("car", 2)
    key = post("/v1/train", json={"model": MODEL, "input": items}).json()["classifier_id"]
    ask = {"classifier_id": key, "input": TEXTS}

    def listed():
        rows = classifier_server.http.get("/v1/classifiers").json()
        return next(row for row in rows if row["classifier_id"] == key)

    before = post("/v1/classify", json=ask).json()
    assert listed()["is_active"]
    with monkeypatch.context() as patch:
        patch.setattr(model, "name", "another-name")
        assert post("/v1/classify", json=ask).json() == before
        other = Future()
        other.set_result("0" * 32)
        patch.setattr(model, "fingerprint", other)
        for path, body in (("classify", ask), ("train", {"classifier_id": key, "input": items})):
            answer = post(f"/v1/{path}", json=body)
            assert answer.json()["code"] == "CONFLICT_MODEL_CHANGED"
            status, sentence = check_error(answer)
            assert (status, "train a new classifier" in sentence) == (409, True)
        assert not listed()["is_active"]
    assert post("/v1/classify", json=ask).json() == before
    assert (listed()["used_number"], listed()["updated_number"]) == (3, 0)


def test_a_classifier_belongs_to_its_key_unless_it_is_public(long_model, tmp_path):
    keys = ApiKeys(hash_keys(["one", "two"]))
    with serving(
        long_model, device="cpu", classifiers=tmp_path / "kept.sqlite", api_keys=keys
    ) as server:

        def call(key, path, method="POST", **body):
            headers = {"Authorization": f"Bearer {key}"}
            answer = server.http.request(method, path, json=body or None, headers=headers)
            return answer.status_code, answer.json()

        items = examples("bread", 2) + examples("car", 2)
        made = [
            call("one", "/v1/train", model=MODEL, input=items, **access)[1]["classifier_id"]
            for access in ({}, {"access": "private"}, {"access": "public"})
        ]
        for number, key in enumerate(made):
            ask = {"classifier_id": key, "input": TEXTS}
            assert call("one", "/v1/classify", **ask)[0] == 200
            assert call("two", "/v1/classify", **ask)[0] == (200 if number == 2 else 404)
            for path, method, body in (
                ("/v1/train", "POST", {"classifier_id": key, "input": items}),
                (f"/v1/classifiers/{key}", "DELETE", {}),
            ):
                assert call("two", path, method, **body)[0] == 404
        assert call("two", "/v1/classifiers", "GET") == (200, [])
        assert len(call("one", "/v1/classifiers", "GET")[1]) == 3
        change = {"classifier_id": made[0], "input": items, "access": "public"}
        assert call("one", "/v1/train", **change)[0] == 200
        assert call("two", "/v1/classify", classifier_id=made[0], input=TEXTS)[0] == 200


def test_a_fit_ends_when_its_client_leaves_and_the_next_one_begins(classifier_server, monkeypatch):
    started, ended = threading.Event(), threading.Event()
    real_fit = classifiers_module.fit

    def endless_fit(labels, vectors, check):
        if "endless" not in labels:
            return real_fit(labels, vectors, check)
        started.set()
        try:
            while True:
                check()
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(classifiers_module, "fit", endless_fit)
    body = json.dumps({"model": MODEL, "input": examples("endless", 2) + examples("car", 2)})
    with classifier_server.connect() as connection:
        connection.sendall(
            b"POST /v1/train HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        assert started.wait(60)
    assert ended.wait(60)
    items = examples("bread", 2) + examples("car", 2)
    answer = classifier_server.http.post("/v1/train", json={"model": MODEL, "input": items})
    assert answer.status_code == 200
    labels = [row["labels"] for row in classifier_server.http.get("/v1/classifiers").json()]
    assert ["car", "endless"] not in labels


def test_a_locked_file_is_503_and_other_requests_are_answered(classifier_server, monkeypatch):
    monkeypatch.setattr(sqlite_file_module, "LOCK_SECONDS", 0.2)
    post, items = classifier_server.http.post, examples("bread", 2) + examples("car", 2)
    key = post("/v1/train", json={"model": MODEL, "input": items}).json()["classifier_id"]
    path = classifier_server.service.classifiers._file._path
    ask = {"classifier_id": key, "input": TEXTS}
    with closing(sqlite3.connect(path)) as database, ThreadPoolExecutor(40) as pool:
        database.execute("begin immediate")
        answers = [pool.submit(post, "/v1/classify", json=ask) for _ in range(40)]
        assert len(classifier_server.embed(TEXTS).json()["data"]) == len(TEXTS)
        statuses = {answer.result().status_code for answer in answers}
        assert statuses <= {429, 503} and 503 in statuses
        assert all("retry-after" in answer.result().headers for answer in answers)
    assert post("/v1/classify", json=ask).status_code == 200


def test_training_needs_a_file(server):
    body = {"model": MODEL, "input": examples("bread", 2)}
    status, sentence = server.error(body, path="/v1/train")
    assert (status, "--classifiers" in sentence) == (404, True)
