"""/v1/rerank sorts as the library does."""

import numpy as np
import pytest

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


def test_one_path_reads_the_bodies_of_all_rerank_services(server):
    """Jina, Cohere, SiliconFlow and Voyage share the path and differ in their fields."""
    body = {"model": MODEL, "query": "cat", "documents": TEXTS}
    expected = server.http.post("/v1/rerank", json=body).json()["results"]
    bodies = (
        {"max_chunks_per_doc": 1_024, "overlap_tokens": 80, "return_documents": True},
        {"max_tokens_per_doc": 4_096, "rank_fields": ["text"], "return_documents": True},
        {"documents": [{"text": text, "id": 7} for text in TEXTS], "user": "someone"},
        {"top_k": 3, "truncation": True, "raw_scores": False},
    )
    for fields in bodies:
        answer = server.http.post("/v1/rerank", json=body | fields).json()
        got = [(one["index"], one["document"]["text"]) for one in answer["results"]]
        assert got == [(one["index"], one["document"]["text"]) for one in expected], fields
        assert answer["id"] and answer["meta"]["tokens"]["input_tokens"] > 0
    assert len(server.http.post("/v1/rerank", json=body | {"top_k": 1}).json()["results"]) == 1
    [short, *_] = server.http.post("/v2/rerank", json=body).json()["results"]
    assert set(short) == {"index", "relevance_score"}


def test_rank_fields_choose_the_text_of_a_document(server):
    def score(document, **fields):
        body = {"query": "cat", "documents": [document], **fields}
        answer = server.http.post("/v1/rerank", json=body)
        [result] = answer.json()["results"]
        return round(result["relevance_score"], 5)

    document = {"title": "Pets", "body": "The cat sleeps.", "price": 3}
    assert score(document, rank_fields=["body"]) == score("The cat sleeps.")
    both = score(document, rank_fields=["title", "body"])
    assert both == score("title: Pets\nbody: The cat sleeps.")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"documents": []}, "at least one"),
        ({"documents": ["a", 7]}, "item 1"),
        ({"documents": [{"title": "a"}]}, "'text'"),
        ({"documents": [{"text": "a"}], "rank_fields": ["title"]}, "'title'"),
        ({"top_n": 1, "top_k": 2}, "differ"),
        ({"top_n": 0}, "top_n"),
    ],
)
def test_wrong_documents_are_refused_by_their_place(server, fields, named):
    for path in ("/v1/rerank", "/v2/rerank"):
        body = {"query": "q", "documents": ["a"]} | fields
        answer = server.http.post(path, json=body)
        assert (answer.status_code, named in answer.json()["detail"]) == (422, True)
