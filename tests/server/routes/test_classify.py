"""/v1/classify and /v1/train give the probabilities of the library and of the command line."""

import json

import numpy as np
import pytest

from polyvec import Encoder
from polyvec.classification import classify, learn_examples, learn_names
from polyvec.cli import app
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


def test_training_needs_a_file(server):
    body = {"model": MODEL, "input": examples("bread", 2)}
    status, sentence = server.error(body, path="/v1/train")
    assert (status, "--classifiers" in sentence) == (404, True)
