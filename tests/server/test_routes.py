"""The routes besides /v1/embeddings."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier

from polyvec import similarity
from polyvec.server.stores.classifiers import Classifiers, learn
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


def test_zero_shot_scores_are_shares(server, library, jina_schema):
    labels = ["animals", "kitchen"]
    body = {"model": MODEL, "input": TEXTS, "labels": labels}
    answer = server.http.post("/v1/classify", json=body).json()
    jina_schema("ClassificationResponse", answer)
    texts, names = (library.encode(group, task="classification") for group in (TEXTS, labels))
    expected = np.exp(texts @ names.T)
    expected /= expected.sum(1, keepdims=True)
    got = [[one["score"] for one in row["predictions"]] for row in answer["data"]]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert [row["prediction"] for row in answer["data"]] == [labels[i] for i in expected.argmax(1)]
    groups = server.http.post(
        "/v1/classify", json=body | {"labels": {"what": labels, "how": ["x"]}}
    )
    jina_schema("ClassificationResponse", groups.json())
    row = groups.json()["data"][0]
    assert row["prediction"]["what"] == answer["data"][0]["prediction"]
    assert row["score"]["how"] == 1


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


def test_training_needs_two_labels_and_a_file(keeping, server):
    body = {"model": MODEL, "input": examples("bread", 2)}
    assert keeping.error(body, path="/v1/train")[0] == 400
    status, sentence = server.error(body, path="/v1/train")
    assert (status, "--classifiers" in sentence) == (404, True)


def test_the_learner_is_scikit_learns(rng):
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    labels = rng.integers(0, 3, 60)
    ours = learn(np.zeros((3, 9), np.float32), vectors, labels, 5)
    theirs = SGDClassifier(
        loss="hinge",
        penalty=None,
        learning_rate="pa1",
        eta0=1.0,
        shuffle=False,
        max_iter=5,
        tol=None,
    ).fit(vectors.astype(np.float64), labels)
    np.testing.assert_allclose(ours[:, :-1], theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(ours[:, -1], theirs.intercept_, atol=1e-3)


def test_no_concurrent_update_is_lost(tmp_path, rng):
    path = tmp_path / "classifiers.sqlite"
    vectors = rng.normal(size=(2, 4)).astype(np.float32)
    key = Classifiers(path).create("me", "m", "private", ["a", "b"], vectors, 1)
    start = threading.Barrier(8)

    def update(number):
        start.wait()
        Classifiers(path).update("me", key, [f"label {number}"] * 2, vectors, 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(update, range(8)))
    [summary] = Classifiers(path).list("me")
    assert summary["updated_number"] == 8 and len(summary["labels"]) == 10
    with pytest.raises(Exception, match="not found"):
        Classifiers(path).use("another", key)


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
