"""The routes besides /v1/embeddings."""

import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from polyvec import similarity
from polyvec.classification import classify, learn_examples, learn_names
from polyvec.cli import app
from polyvec.server.errors import ApiError
from polyvec.server.stores import classifiers as classifiers_module
from polyvec.server.stores.classifiers import Classifiers
from tests.server.conftest import MODEL, check_error, serving

TEXTS = ["Where does the cat sleep?", "Die Katze schläft auf dem Stuhl.", "Brot backen"]


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    """A server that keeps classifiers."""
    path = tmp_path_factory.mktemp("data") / "classifiers.sqlite"
    with serving(classifiers=path) as running:
        yield running


def test_rerank_is_the_cosine_of_query_and_passage(server, library, jina_schema):
    body = {"model": MODEL, "query": "cat", "documents": [*TEXTS[:2], {"text": TEXTS[2]}]}
    answer = server.http.post("/v1/rerank", json=body).json()
    jina_schema("RerankingResponse", answer)
    query = library.encode("cat", task="retrieval.query")
    expected = similarity(library.encode(TEXTS, task="retrieval.passage"), query)[:, 0]
    got = {one["index"]: one["relevance_score"] for one in answer["results"]}
    np.testing.assert_allclose([got[i] for i in range(3)], expected, atol=1e-5)
    assert list(got.values()) == sorted(got.values(), reverse=True)
    assert answer["results"][0]["document"] == {"text": TEXTS[answer["results"][0]["index"]]}
    short = server.http.post("/v1/rerank", json=body | {"top_n": 1, "return_documents": False})
    assert [set(one) for one in short.json()["results"]] == [{"index", "relevance_score"}]


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


def test_few_shot_probabilities_are_those_of_the_library(keeping, library):
    items = examples("bread", 4) + examples("car", 4) + examples("cat", 3)
    train = {"model": MODEL, "input": items[:6]}
    key = keeping.http.post("/v1/train", json=train).json()["classifier_id"]
    more = {"classifier_id": key, "input": items[6:]}
    assert keeping.http.post("/v1/train", json=more).status_code == 200
    ask = {"classifier_id": key, "input": TEXTS}
    answer = keeping.http.post("/v1/classify", json=ask).json()
    learned = learn_examples(
        library, [item["text"] for item in items], [item["label"] for item in items]
    )
    assert [one["label"] for one in answer["data"][0]["predictions"]] == learned.labels
    got = [[one["score"] for one in row["predictions"]] for row in answer["data"]]
    np.testing.assert_allclose(got, classify(library, learned, TEXTS), atol=1e-6)


def test_the_command_line_gives_the_same_probabilities(server, capsys):
    labels = ["animals", "kitchen"]
    options = [word for label in labels for word in ("--labels", label)]
    app(["classify", *options, "--json", *TEXTS], result_action="return_value")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    body = {"model": MODEL, "input": TEXTS, "labels": labels}
    data = server.http.post("/v1/classify", json=body).json()["data"]
    print(lines, data)


def examples(kind, number):
    return [{"text": f"{kind} number {i} is here", "label": kind} for i in range(number)]


def test_a_classifier_is_trained_used_listed_and_forgotten(keeping, jina_schema):
    items = examples("bread", 4) + examples("car", 4)
    made = keeping.http.post("/v1/train", json={"model": MODEL, "input": items}).json()
    jina_schema("TrainingResponse", made)
    key = made["classifier_id"]
    ask = {"classifier_id": key, "input": ["bread and more bread", "a fast car"]}
    answer = keeping.http.post("/v1/classify", json=ask).json()
    jina_schema("ClassificationResponse", answer)
    assert [row["prediction"] for row in answer["data"]] == ["bread", "car"]
    more = {"classifier_id": key, "input": examples("cat", 4)}
    assert keeping.http.post("/v1/train", json=more).json()["num_samples"] == 4
    ask["input"] = ["the cat number 9"]
    assert keeping.http.post("/v1/classify", json=ask).json()["data"][0]["prediction"] == "cat"
    [summary] = keeping.http.get("/v1/classifiers").json()
    jina_schema("ClassifierSummary", summary)
    counts = (summary["updated_number"], summary["used_number"], len(summary["labels"]))
    assert (summary["classifier_id"], *counts) == (key, 1, 2, 3)
    assert keeping.http.delete(f"/v1/classifiers/{key}").status_code == 200
    assert check_error(keeping.http.post("/v1/classify", json=ask))[0] == 404


def test_a_classifier_with_one_label_gives_this_label(keeping):
    made = keeping.http.post("/v1/train", json={"model": MODEL, "input": examples("bread", 2)})
    key = made.json()["classifier_id"]
    ask = {"classifier_id": key, "input": ["anything"]}
    [row] = keeping.http.post("/v1/classify", json=ask).json()["data"]
    assert (row["prediction"], row["score"]) == ("bread", 1)
    more = {"classifier_id": key, "input": examples("car", 2)}
    assert keeping.http.post("/v1/train", json=more).status_code == 200
    [row] = keeping.http.post("/v1/classify", json=ask | {"input": ["car number 5"]}).json()["data"]
    assert row["prediction"] == "car"


def test_training_needs_a_file(server):
    body = {"model": MODEL, "input": examples("bread", 2)}
    status, sentence = server.error(body, path="/v1/train")
    assert (status, "--classifiers" in sentence) == (404, True)


def test_a_classifier_does_not_depend_on_the_order_of_its_examples(tmp_path, rng):
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    labels = [f"label {i}" for i in rng.integers(0, 3, 40)]
    order = rng.permutation(40)
    once = store.create("me", "m", "private", labels, vectors)
    shuffled = [labels[i] for i in order]
    again = store.create("me", "m", "private", shuffled[:10], vectors[order[:10]])
    store.update("me", again, shuffled[10:], vectors[order[10:]])
    first, second = (store.use("me", key).classifier for key in (once, again))
    assert first.labels == second.labels
    assert np.array_equal(first.weights, second.weights)
    assert np.array_equal(first.biases, second.biases)


def test_no_concurrent_update_is_lost(tmp_path, rng):
    path = tmp_path / "classifiers.sqlite"
    vectors = rng.normal(size=(2, 4)).astype(np.float32)
    key = Classifiers(path).create("me", "m", "private", ["a", "b"], vectors)
    start = threading.Barrier(8)

    def update(number):
        start.wait()
        Classifiers(path).update("me", key, [f"label {number}"] * 2, vectors)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(update, range(8)))
    [summary] = Classifiers(path).list("me")
    assert summary["updated_number"] == 8 and len(summary["labels"]) == 10
    assert Classifiers(path).use("me", key).classifier.labels == summary["labels"]
    with pytest.raises(ApiError, match="not found"):
        Classifiers(path).use("another", key)


def test_a_classifier_has_a_limit_of_examples_and_of_labels(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(classifiers_module, "MAX_EXAMPLES", 6)
    monkeypatch.setattr(classifiers_module, "MAX_LABELS", 3)
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(7, 4)).astype(np.float32)
    key = store.create("me", "m", "private", list("abca"), vectors[:4])
    with pytest.raises(ApiError, match="7 examples; the limit is 6") as caught:
        store.update("me", key, list("abc"), vectors[:3])
    assert caught.value.status == 400
    with pytest.raises(ApiError, match="4 labels") as caught:
        store.update("me", key, ["d"], vectors[:1])
    assert caught.value.status == 400
    assert store.list("me")[0]["labels"] == list("abc")
    store.update("me", key, ["a", "b"], vectors[:2])


def test_a_classifier_whose_fit_was_interrupted_is_fitted_when_it_is_used(
    tmp_path, monkeypatch, rng
):
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(4, 4)).astype(np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_fit", lambda key: None)
        key = store.create("me", "m", "private", list("abab"), vectors)
    first, second = store.use("me", key).classifier, store.use("me", key).classifier
    assert np.array_equal(first.weights, second.weights) and first.labels == ["a", "b"]


def test_a_file_of_the_older_format_is_refused_by_its_name(tmp_path):
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table classifiers (classifier_id text, weights blob)")
    with pytest.raises(ValueError, match=r"old\.sqlite was written by an older version"):
        Classifiers(path)


def test_segments_cover_the_text(server, library):
    text = "One sentence here. Another one there! 猫が好き。 And the end"
    body = {"content": text, "return_tokens": True, "return_chunks": True, "max_chunk_length": 25}
    answer = server.http.post("/v1/segment", json=body).json()
    assert "".join(answer["chunks"]) == text and max(map(len, answer["chunks"])) <= 25
    assert [text[a:b] for a, b in answer["chunk_positions"]] == answer["chunks"]
    ids = [i for chunk in answer["tokens"] for _, [i] in chunk]
    [expected] = library.tokenizer.encode([text], [""])
    assert ids == expected.ids[1:-1].tolist() and answer["num_tokens"] == len(ids)
    head = server.http.post("/v1/segment", json={"content": text, "head": 3}).json()
    assert head["num_tokens"] == 3
    assert server.error({"content": text, "head": 1, "tail": 1}, path="/v1/segment")[0] == 422


def test_an_empty_text_has_no_segments(server):
    body = {"content": "", "return_tokens": True, "return_chunks": True}
    answer = server.http.post("/v1/segment", json=body).json()
    assert (answer["num_tokens"], answer["chunks"], answer["tokens"]) == (0, [], [])


def test_models_have_their_names(server, jina_schema):
    listed = server.http.get("/v1/models").json()
    jina_schema("ModelListResponse", listed)
    assert [model["id"] for model in listed["data"]] == ["polyvec-mini", MODEL]
    for name in ("polyvec-mini", f"jina-ai/{MODEL}"):
        one = server.http.get(f"/v1/models/{name}").json()
        jina_schema("ModelInfo", one)
        assert one["max_output_length"] == 384
    assert check_error(server.http.get("/v1/models/other"))[0] == 404


def test_tei_speaks_its_dialect(server, library):
    ask = {"inputs": TEXTS, "prompt_name": "retrieval.query"}
    got = np.float32(server.http.post("/embed", json=ask).json())
    np.testing.assert_allclose(got, library.encode(TEXTS, task="retrieval.query"), atol=2e-6)
    tokens = server.http.post("/embed_all", json={"inputs": TEXTS[0]}).json()
    np.testing.assert_allclose(np.float32(tokens[0]), library.encode_tokens(TEXTS[0])[0], atol=2e-5)
    ranks = server.http.post("/rerank", json={"query": "cat", "texts": TEXTS, "return_text": True})
    assert all(TEXTS[rank["index"]] == rank["text"] for rank in ranks.json())
    [words] = server.http.post("/tokenize", json={"inputs": TEXTS[0]}).json()
    [expected] = library.tokenizer.encode(TEXTS[:1], [""])
    assert [word["id"] for word in words] == expected.ids.tolist() and words[0]["special"]
    assert server.http.get("/info").json()["max_input_length"] == 8_192
    refused = server.http.post("/embed", json={"inputs": [""]}).json()
    assert refused["error"] == refused["detail"] and refused["error_type"]
    assert server.http.post("/embed_sparse", json={"inputs": "a"}).status_code == 200


def test_the_document_names_every_route(server):
    document = server.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/embeddings", "/v1/rerank", "/embed", "/v2/embed", "/v1/train"} <= set(
        document["paths"]
    )


def test_the_page_needs_nothing_from_elsewhere(server):
    page = server.http.get("/").text
    assert "<script>" in page and "http" not in page and "src=" not in page
