"""/v1/rerank sorts as the library does."""

import numpy as np

from polyvec import similarity
from tests.server.conftest import MODEL, TEXTS


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
