"""The routes of Cohere, versions 1 and 2."""

import numpy as np
import pytest

from tests.server.conftest import MODEL, TEXTS

LONG = "snow " * 2_000 + "fox"
"""A text of more tokens than the model with 1,024 reads."""


def test_version_1_answers_a_list_unless_encodings_are_named(server, library):
    expected = library.encode(TEXTS, task="retrieval.query")
    body = {"texts": TEXTS, "input_type": "search_query"}
    answer = server.http.post("/v1/embed", json=body).json()
    assert answer["response_type"] == "embeddings_floats"
    np.testing.assert_allclose(answer["embeddings"], expected, atol=2e-6)
    answer = server.http.post("/v1/embed", json=body | {"embedding_types": ["float"]}).json()
    assert answer["response_type"] == "embeddings_by_type"
    np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=2e-6)
    answer = server.http.post("/v1/embed", json={"texts": TEXTS}).json()
    np.testing.assert_allclose(answer["embeddings"], library.encode(TEXTS), atol=2e-6)


def test_version_2_reads_inputs_of_parts(server, library):
    parts = [{"type": "text", "text": text} for text in TEXTS[:2]]
    body = {"model": MODEL, "input_type": "clustering", "inputs": [{"content": parts}]}
    answer = server.http.post("/v2/embed", json=body | {"priority": 1}).json()
    expected = library.encode("\n".join(TEXTS[:2]), task="separation")
    np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=2e-6)
    assert answer["texts"] == ["\n".join(TEXTS[:2])]


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_each_side_of_a_text_can_be_truncated(long_server, long_library, path):
    def embed(text, truncate):
        body = {"model": MODEL, "texts": [text], "input_type": "search_query"}
        return long_server.http.post(path, json=body | {"truncate": truncate})

    def vector(text, truncate):
        embeddings = embed(text, truncate).json()["embeddings"]
        return np.float32(embeddings["float"] if path == "/v2/embed" else embeddings)

    beginning = vector("snow " * 2_000, "END")
    np.testing.assert_allclose(vector(LONG, "END"), beginning, atol=1e-5)
    assert np.abs(vector(LONG, "START") - beginning).max() > 1e-4
    assert np.abs(vector("dog " + LONG, "START") - vector(LONG, "START")).max() < 1e-5
    refused = embed(LONG, "NONE")
    assert refused.status_code == 400 and "texts[0]" in refused.json()["message"]


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"images": ["data:image/png;base64,AA=="]}, 400, "images"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, 422, "texts or in inputs"),
        ({"texts": None}, 422, "texts or in inputs"),
        (
            {"texts": None, "inputs": [{"content": [{"type": "image_url"}]}]},
            422,
            "inputs.0.content.0.type",
        ),
        ({"input_type": "image"}, 422, "input_type"),
        ({"output_dimension": 1_000}, 400, "output_dimension"),
    ],
)
def test_wrong_requests_are_refused_by_their_field(server, fields, status, named):
    for path in ("/v1/embed", "/v2/embed"):
        body = {"model": MODEL, "texts": ["a"], "input_type": "search_query"} | fields
        answer = server.http.post(path, json=body)
        got = answer.json()
        assert (answer.status_code, named in got["message"]) == (status, True), got
