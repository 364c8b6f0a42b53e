"""One table has all output encodings, and a vector survives each that promises its bits."""

import base64
import json

import numpy as np

from polyvec import outputs
from polyvec.server.serialise import (
    COHERE_ENCODINGS,
    ENCODINGS,
    JINA_ENCODINGS,
    dense_objects,
    pack_bits,
    to_json,
)


def test_each_dialect_accepts_its_encodings_of_the_table(server):
    schemas = server.http.get("/openapi.json").json()["components"]["schemas"]
    for schema, field, names in (
        ("EmbeddingRequest", "embedding_type", JINA_ENCODINGS),
        ("CohereEmbedRequest", "embedding_types", COHERE_ENCODINGS),
    ):
        choices = schemas[schema]["properties"][field]["anyOf"]
        lists = [choice["items"]["enum"] for choice in choices if choice.get("type") == "array"]
        assert lists == [list(names)]
    for name in ENCODINGS:
        answer = server.embed("a", embedding_type=name)
        assert answer.status_code == (200 if name in JINA_ENCODINGS else 422)
        if name not in JINA_ENCODINGS:
            assert "should be 'float'" in answer.json()["detail"]


def test_an_encoding_is_the_function_of_the_core(rng):
    vectors = rng.normal(size=(3, 16)).astype(np.float32)
    for name, encoding in ENCODINGS.items():
        expected = vectors if name == "float" else getattr(outputs, f"to_{name}")(vectors)
        assert np.array_equal(np.array(encoding.apply(vectors)), np.array(expected)), name
    assert pack_bits(["float", "binary"]) and not pack_bits(["float", "int8"])


def test_numbers_keep_their_bits_as_json_and_as_base64(rng):
    vectors = rng.normal(size=(5, 8)).astype(np.float32)
    for row, body in zip(
        vectors, dense_objects(vectors, ["float", "base64"], first_index=0), strict=True
    ):
        item = json.loads(body)
        assert np.array_equal(np.float32(item["embedding"]), row)
        packed = base64.b64decode(item["embedding_types"]["base64"])
        assert np.array_equal(np.frombuffer(packed, "<f4"), row)
    assert to_json({"a": np.float32([1])}) == b'{"a":[1.0]}'
