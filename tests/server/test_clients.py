"""Popular clients, unmodified, against the running server."""

import numpy as np
import openai
import pytest

from tests.server.conftest import MODEL

TEXTS = ["Where does the cat sleep?", "Die Katze schläft auf dem Stuhl."]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(library):
    return library.encode(TEXTS)


def rows(response):
    assert [one.index for one in response.data] == list(range(len(response.data)))
    return np.float32([one.embedding for one in response.data])


def test_openai_with_its_default_which_is_base64(client, expected):
    response = client.embeddings.create(model=MODEL, input=TEXTS)
    np.testing.assert_allclose(rows(response), expected, atol=2e-6)
    assert response.usage.prompt_tokens == response.usage.total_tokens > 0


def test_openai_with_floats_dimensions_and_a_single_text(client, library):
    response = client.embeddings.create(
        model=MODEL, input=TEXTS[0], encoding_format="float", dimensions=64, user="someone"
    )
    np.testing.assert_allclose(rows(response), library.encode(TEXTS[:1], dim=64), atol=2e-6)


def test_openai_with_token_ids(client, library, expected):
    ids = [text.ids.tolist() for text in library.tokenizer.encode(TEXTS, ["", ""])]
    np.testing.assert_allclose(
        rows(client.embeddings.create(model=MODEL, input=ids)), expected, atol=2e-6
    )
    one = client.embeddings.create(model=MODEL, input=ids[0])
    np.testing.assert_allclose(rows(one), expected[:1], atol=2e-6)


def test_openai_with_ids_of_its_own_tokenizer_is_told_to_send_texts(client):
    """This is what LangChain's OpenAIEmbeddings sends by default."""
    with pytest.raises(openai.BadRequestError, match=r"<s>.*check_embedding_ctx_length=False"):
        client.embeddings.create(model=MODEL, input=[[9241, 1587, 279, 8415, 6212, 30]])


def test_azure_openai(server, expected):
    with openai.AzureOpenAI(
        azure_endpoint=server.url, api_key="none", api_version="2024-06-01", max_retries=0
    ) as azure:
        got = azure.embeddings.create(model=MODEL, input=TEXTS)
        np.testing.assert_allclose(rows(got), expected, atol=2e-6)
        with pytest.raises(openai.BadRequestError, match="gpt-5"):
            azure.embeddings.create(model="gpt-5", input=TEXTS)
    with openai.OpenAI(base_url=f"{server.url}/openai/v1/", api_key="none") as newer:
        got = newer.embeddings.create(model=MODEL, input=TEXTS)
        np.testing.assert_allclose(rows(got), expected, atol=2e-6)


def test_openai_with_a_task(client, library):
    response = client.embeddings.create(
        model=MODEL, input=TEXTS, extra_body={"task": "retrieval.query"}
    )
    queries = library.encode(TEXTS, task="retrieval.query")
    np.testing.assert_allclose(rows(response), queries, atol=2e-6)


def test_openai_reads_our_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=["good", ""])
    assert "input[1]" in str(caught.value) and caught.value.param == "input[1]"
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model=MODEL, input="a", extra_body={"surprise": 1})


def test_openai_lists_the_models(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def test_langchain_openai(server, expected):
    from langchain_openai import OpenAIEmbeddings

    # Its default sends ids of OpenAI's tokenizer; this switch is for every other server.
    model = OpenAIEmbeddings(
        model=MODEL, base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(model.embed_documents(TEXTS), expected, atol=2e-6)
    np.testing.assert_allclose(model.embed_query(TEXTS[0]), expected[0], atol=2e-6)
