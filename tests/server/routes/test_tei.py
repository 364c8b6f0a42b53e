"""The routes of Text Embeddings Inference."""

import numpy as np
import pytest

from polyvec.server.inputs import tokenise
from tests.server.conftest import TEXTS


def test_the_routes_of_tei_answer_in_its_forms(server, library):
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


EMBEDS = ("/embed", "/", "/invocations")
"""Paths that embed texts."""


@pytest.mark.parametrize("path", EMBEDS)
def test_one_text_a_list_and_token_ids_are_embedded(server, library, path):
    expected = library.encode(TEXTS)
    ids = [text.ids.tolist() for text in library.tokenizer.encode(TEXTS, [""] * len(TEXTS))]
    for inputs, vectors in (
        (TEXTS, expected),
        (TEXTS[0], expected[:1]),
        (ids, expected),
        (ids[1], expected[1:2]),
    ):
        answer = server.http.post(path, json={"inputs": inputs})
        np.testing.assert_allclose(answer.json(), vectors, atol=2e-6)


@pytest.mark.parametrize("path", ["/similarity", "/", "/invocations"])
@pytest.mark.parametrize("task", [None, "text-matching"])
def test_similarity_is_the_cosine_of_the_embeddings(server, library, path, task):
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    body = {"inputs": inputs, "parameters": {"prompt_name": task, "surprise": 1}}
    got = server.http.post(path, json=body).json()
    vectors = library.encode(TEXTS, task=task)
    np.testing.assert_allclose(got, vectors @ vectors[0], atol=1e-5)


def test_fields_that_tei_does_not_have_are_ignored(server):
    """TEI's own server ignores them, and clients of similar servers send them."""
    extra = {"surprise": {"a": [1]}, "top_k": 3, "model": "m"}
    inputs = {"source_sentence": "a", "sentences": ["b"], **extra}
    for path, body in (
        *(
            (path, {"inputs": "a"})
            for path in (*EMBEDS, "/embed_all", "/tokenize", "/embed_sparse")
        ),
        ("/rerank", {"query": "a", "texts": ["b"]}),
        ("/similarity", {"inputs": inputs}),
        ("/decode", {"ids": [0, 5, 2]}),
    ):
        assert server.http.post(path, json=body | extra).status_code == 200, path


def test_rerank_returns_as_many_texts_as_requested(server):
    body = {"query": "cat", "texts": TEXTS, "top_n": 1, "return_documents": True}
    [best] = server.http.post("/rerank", json=body).json()
    assert best["text"] == TEXTS[best["index"]]


@pytest.mark.parametrize("task", ["retrieval.query", None])
def test_truncation_on_the_left_keeps_the_end(long_server, long_library, task):
    """The tokens are `<s>`, the instruction, as many of the text's last ones as fit, `</s>`."""
    text = "cat " * 90_000 + "The fox sleeps.  Snow falls;\n nobody minds. " * 400
    choice = long_server.service.models[0].choose_task(task)
    [whole] = long_library.tokenizer.encode([text], [choice.prompt], truncate=False)
    [tokens] = tokenise(long_library.tokenizer, [text], choice.prompt, "left")
    size, num_prompt = long_library.config.max_tokens, whole.num_prompt
    kept = [*whole.ids[:num_prompt].tolist(), *whole.ids[num_prompt - size :].tolist()]
    assert tokens.ids.tolist() == kept and tokens.truncated
    body = {"inputs": text, "truncate": True, "prompt_name": task}

    def embed(**fields):
        return np.float32(long_server.http.post("/embed", json=body | fields).json())

    got = embed(truncation_direction="Left")
    np.testing.assert_array_equal(embed(truncation_direction="left").shape, got.shape)
    assert np.abs(got - embed(truncation_direction="Right")).max() > 1e-3
    np.testing.assert_allclose(got, embed(inputs=text[90_000:], truncation_direction="Left"))


def test_decode_inverts_tokenize(server):
    words = server.http.post("/tokenize", json={"inputs": TEXTS}).json()
    ids = [[word["id"] for word in text] for text in words]
    assert server.http.post("/decode", json={"ids": ids}).json() == TEXTS
    assert server.http.post("/decode", json={"ids": ids[0]}).json() == TEXTS[:1]
    body = {"ids": ids[0], "skip_special_tokens": False}
    assert "<s>" in server.http.post("/decode", json=body).json()[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/decode", {"ids": [10**6]}, 400, "ids[0]"),
        ("/decode", {"ids": ["a"]}, 422, "token ids"),
        ("/decode", {"ids": []}, 422, "ids"),
        ("/predict", {"inputs": "a"}, 400, "/v1/classify"),
        ("/similarity", {"inputs": {"source_sentence": " ", "sentences": ["a"]}}, 400, "source"),
        ("/", {"inputs": {"source_sentence": "a", "sentences": ["a", ""]}}, 400, "sentences[1]"),
        ("/", {"inputs": {"source_sentence": "a"}}, 422, "sentences"),
        ("/", {"inputs": 7}, 422, "inputs"),
        ("/", {}, 422, "inputs"),
        ("/embed", {"inputs": "a", "truncation_direction": "Middle"}, 422, "truncation_direction"),
    ],
)
def test_wrong_requests_are_refused_in_teis_form(server, path, body, status, named):
    answer = server.http.post(path, json=body)
    got = answer.json()
    assert (answer.status_code, named in got["error"]) == (status, True), got
    assert got["error_type"] == "Validation"


def test_the_description_has_the_fields_that_clients_read(server):
    info = server.http.get("/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert info["max_client_batch_size"] == server.service.limits.items
    assert server.http.get("/ping").status_code == 200
