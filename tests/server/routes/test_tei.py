"""The routes of Text Embeddings Inference."""

import numpy as np

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
