"""More clients, unmodified. Importing their packages is slow or raises warnings."""

import warnings

import httpx
import numpy as np
import pytest

from tests.server.conftest import MODEL
from tests.server.test_clients import TEXTS


def test_langchain_community(server, library, monkeypatch):
    with warnings.catch_warnings():
        # The package announces its own end when imported.
        warnings.simplefilter("ignore")
        from langchain_community.embeddings import jina

    # The address is a constant of the module.
    monkeypatch.setattr(jina, "JINA_API_URL", f"{server.url}/v1/embeddings")
    client = jina.JinaEmbeddings(jina_api_key="none", model_name=MODEL)
    with client.session:
        got = client.embed_documents(TEXTS)
    np.testing.assert_allclose(got, library.encode(TEXTS), atol=2e-6)


def test_cohere(server, library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cohere

    # Left to itself the client opens a connection that it cannot close.
    with httpx.Client(follow_redirects=True) as http, warnings.catch_warnings():
        # Version 1 of the client uses attributes that pydantic is going to remove.
        warnings.simplefilter("ignore")
        client = cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=http)
        answer = client.embed(
            model=MODEL,
            texts=TEXTS,
            input_type="search_query",
            embedding_types=["float", "int8", "ubinary"],
            output_dimension=64,
        )
        ranked = client.rerank(model=MODEL, query="Where is the cat?", documents=TEXTS, top_n=1)
        older = cohere.Client(api_key="none", base_url=server.url, httpx_client=http)
        floats = older.embed(model=MODEL, texts=TEXTS, input_type="search_query")
        typed = older.embed(texts=TEXTS, input_type="search_query", embedding_types=["int8"])
        documents = [{"text": text} for text in TEXTS]
        again = older.rerank(query="Where is the cat?", documents=documents, return_documents=True)
        with pytest.raises(cohere.BadRequestError) as caught:
            older.embed(model="other", texts=TEXTS)
    expected = library.encode(TEXTS, task="retrieval.query", dim=64)
    np.testing.assert_allclose(answer.embeddings.float_, expected, atol=2e-6)
    assert np.abs(np.array(answer.embeddings.int8)).max() == 127
    assert len(ranked.results) == 1 and ranked.results[0].index == again.results[0].index
    assert again.results[0].document.text == TEXTS[again.results[0].index]
    queries = library.encode(TEXTS, task="retrieval.query")
    np.testing.assert_allclose(floats.embeddings, queries, atol=2e-6)
    assert np.shape(typed.embeddings.int8) == queries.shape
    assert "other" in caught.value.body["message"]


def test_huggingface_hub(server, library):
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    client = InferenceClient(base_url=server.url)
    got = client.feature_extraction(TEXTS[0], truncate=True, truncation_direction="left")
    np.testing.assert_allclose(got, library.encode(TEXTS[:1]), atol=2e-6)
    vectors = library.encode(TEXTS)
    for url in (server.url, f"{server.url}/similarity"):
        cosines = InferenceClient(model=url).sentence_similarity(TEXTS[0], other_sentences=TEXTS)
        np.testing.assert_allclose(cosines, vectors @ vectors[0], atol=1e-5)
    with pytest.raises(HfHubHTTPError, match="is empty"):
        client.feature_extraction("")


def test_llama_index(server, library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from llama_index.embeddings.jinaai import JinaEmbedding

    for kind in ("float", "binary"):
        model = JinaEmbedding(
            api_key="none", model=MODEL, task="retrieval.passage", encoding_documents=kind
        )
        # The class has no argument for the address, its caller has.
        model._api.api_url = f"{server.url}/v1/embeddings"
        with model._api._session:
            got = np.float32(model.get_text_embedding_batch(TEXTS))
        expected = library.encode(TEXTS, task="retrieval.passage")
        if kind == "binary":
            assert (got == (expected > 0)).mean() > 0.99
        else:
            np.testing.assert_allclose(got, expected, atol=2e-6)


def test_haystack(server, library, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from haystack import Document
        from haystack.utils import Secret
        from haystack_integrations.components.embedders.jina import (
            JinaDocumentEmbedder,
            JinaTextEmbedder,
        )
        from haystack_integrations.components.rankers.jina import JinaRanker

    key, url = Secret.from_token("none"), f"{server.url}/v1/embeddings"
    options = {"api_key": key, "model": MODEL, "base_url": url, "dimensions": 64}
    documents = [Document(content=text) for text in TEXTS]
    embedder = JinaDocumentEmbedder(task="retrieval.passage", progress_bar=False, **options)
    got = np.float32([document.embedding for document in embedder.run(documents)["documents"]])
    expected = library.encode(TEXTS, task="retrieval.passage", dim=64)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    asked = JinaTextEmbedder(task="retrieval.query", **options).run("Where is the cat?")
    query = library.encode("Where is the cat?", task="retrieval.query", dim=64)[0]
    np.testing.assert_allclose(asked["embedding"], query, atol=2e-6)
    ranker = JinaRanker(model=MODEL, api_key=key, base_url=f"{server.url}/v1/rerank")
    ranked = ranker.run("Where is the cat?", documents)["documents"]
    assert sorted(one.content for one in ranked) == sorted(TEXTS)
