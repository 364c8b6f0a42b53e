"""Faults F1 to F8: whatever is sent, one sentence comes back, and the server lives."""

import http.client
import json
import socket
import time

import numpy as np
import pytest

from polyvec.server import inputs
from tests.server.conftest import MODEL, check_error, serving


def vectors(answer):
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]], np.float32)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("texts", "status", "named"),
    [
        ("", 400, "input[0]"),
        (["good", ""], 400, "input[1]"),
        (["good", " \t\n\u2003"], 400, "input[1]"),
        ([], 422, "input"),
        ([[]], 422, "item 0"),
        ([None], 422, "item 0"),
        (None, 422, "input"),
    ],
)
def test_nothing_to_embed_is_an_error_that_names_it(server, texts, status, named, late):
    """F1: empty string, empty list, white space; F8: an empty chunk, a chunk of only spaces."""
    got, sentence = server.error({"input": texts, "late_chunking": late})
    assert (got, named in sentence) == (status, True), sentence


def words(library, num_tokens):
    """A text that has exactly so many tokens, special ones included."""
    vocabulary = library.tokenizer.core.get_vocab()
    word = next(w for w in (p[1:] for p in sorted(vocabulary) if p[0] == "▁") if w.isalpha())
    text = " ".join([word] * (num_tokens - 2))
    assert library.tokenizer.count(text) == num_tokens
    return text


def test_the_longest_text_passes_and_a_longer_one_is_refused(server, long_server, long_library):
    """F2: as many tokens as the model reads pass, one more does not, without truncate.

    With a small model of 1,024 tokens; the bundled one refuses 8,193.
    """
    answer = long_server.embed(words(long_library, 1_024))
    assert answer.json()["usage"]["total_tokens"] == 1_024
    for one, limit in ((long_server, 1_024), (server, 8_192)):
        text = " ".join(["a"] * (limit + 1))
        status, sentence = one.error({"input": ["b", text]})
        assert (status, "input[1]" in sentence, "truncate" in sentence) == (400, True, True)


def test_truncation_reads_the_beginning(long_server, long_library):
    """F2: one token too many, and a million tokens, give what their beginning gives."""
    expected = vectors(long_server.embed(words(long_library, 1_024)))
    for num_tokens in (1_025, 1_000_000):
        answer = long_server.embed(words(long_library, num_tokens), truncate=True)
        assert answer.json()["usage"]["total_tokens"] == 1_024
        np.testing.assert_allclose(vectors(answer), expected, atol=1e-5)
    assert long_server.error({"input": words(long_library, 1_000_000)})[0] == 400


def test_the_beginning_of_a_long_text_has_the_tokens_of_the_whole(library):
    """F2: reading only the beginning of a long text changes no token."""
    text = "Grüße an 2,5 Millionen Leser… 猫が好き。\n\tfoo_bar " * 6_000
    for prompt in ("", "Represent the document for retrieval: "):
        [whole] = library.tokenizer.encode([text], [prompt])
        part = inputs.tokenise_long_text(library.tokenizer, text, prompt)
        assert np.array_equal(part.ids, whole.ids) and part.truncated == whole.truncated


STRANGE = {
    "nul": "a\0b",
    "byte order mark": "\ufeffhello",
    "right to left": "שלום \u202eevil\u202c",
    "combining": "e" + "\u0301" * 500,
    "one word": "x" * 100_000,
    "emoji": "👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿" * 20,
    "private use": "\ue000\U0010ffff",
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_text_is_read_as_the_library_reads_it(long_server, long_library, name):
    """F3: NUL, BOM, RTL, combining marks, a 100 kB word, emoji."""
    got = vectors(long_server.embed(STRANGE[name], truncate=True))
    np.testing.assert_allclose(got, long_library.encode(STRANGE[name]), atol=1e-5)


def test_half_a_surrogate_pair_is_a_replacement_character(server, library):
    """F3: lone surrogates, which JSON can spell and UTF-8 cannot."""
    body = b'{"model": "%b", "input": "fox \\ud83d den", "user": "\\udc00"}' % MODEL.encode()
    answer = server.http.post(
        "/v1/embeddings", content=body, headers={"content-type": "application/json"}
    )
    np.testing.assert_allclose(vectors(answer), library.encode("fox \ufffd den"), atol=1e-5)


def body(**fields):
    return json.dumps({"model": MODEL, "input": "a"} | fields).encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b'{"model": "m", "input": "\xff\xfe"}', 400, id="not UTF-8"),
        pytest.param(b"[" * 100_000, 400, id="deep"),
        pytest.param(b'{"input":' * 100_000, 400, id="deep objects"),
        pytest.param(b'{"model": "a", "model": "b", "input": "x"}', 400, id="duplicate keys"),
        pytest.param(b'{"model": "a", "input": "x", "dimensions": NaN}', 400, id="NaN"),
        pytest.param(b'{"model": "a", "input": -Infinity}', 400, id="infinity"),
        pytest.param(b'{"model":"a","input":"x","dimensions":1%b}' % (b"0" * 9_999), 400, id="big"),
        pytest.param(body(dimensions=10**30), 422, id="huge"),
        pytest.param(body(dimensions=1e400), 400, id="beyond float"),
        pytest.param(body(late_chunking="yes"), 422, id="text for a boolean"),
        pytest.param(body(surprise=1), 422, id="unknown field"),
        pytest.param(body(input={"text": "a", "image": "b"}), 422, id="an object of another kind"),
        pytest.param(body(input=[1, True]), 422, id="a boolean among ids"),
        pytest.param(body(input=["a", 1]), 422, id="ids among texts"),
        pytest.param(body(input=7), 422, id="number"),
        pytest.param(body(model=["a"]), 422, id="model"),
        pytest.param(b"[]", 422, id="list"),
        pytest.param(b"null", 422, id="null"),
        pytest.param(b"", 400, id="empty"),
        pytest.param(b'{"model": "a", "inp', 400, id="half"),
    ],
)
def test_wrong_json_is_refused_in_a_sentence(server, sent, status):
    """F4: wrong types, deep nesting, duplicate keys, NaN, huge integers, unknown fields."""
    assert server.error(sent)[0] == status


def test_every_fault_of_a_request_is_named(server):
    """F4: a validation error lists the fields at fault, ten at most, with little of their values"""
    answer = server.http.post(
        "/v1/embeddings",
        json={"model": 1, "input": "a", "task": 2, "x" * 5: "y" * 9_999}
        | dict.fromkeys("abcdefghij"),
    )
    errors = answer.json()["errors"]
    assert {"model", "task"} <= {error["field"] for error in errors} and len(errors) == 10
    assert len(answer.content) < 5_000


def test_too_many_texts_and_too_many_bytes_are_refused(server):
    """F5: a list of 10,000 items, a body of 33 MB."""
    status, sentence = server.error({"input": ["a"] * 10_000})
    assert (status, "10,000" in sentence) == (400, True)
    assert server.error({"input": "a" * 33_000_000})[0] == 413


def test_too_many_tokens_are_refused(server):
    """F5: within the caps of items and bytes, and beyond that of tokens."""
    status, sentence = server.error({"input": ["the " * 1_500] * 250})
    assert (status, "300,000 tokens" in sentence) == (400, True)


def test_a_body_of_unknown_length_is_read_up_to_the_limit(server):
    """F5: a chunked body with no length, small and endless."""

    def chunks(size):
        yield b'{"model": "%b", "input": "' % MODEL.encode()
        for _ in range(size):
            yield b"word " * 200_000
        yield b'"}'

    kind = {"content-type": "application/json"}
    small = b'{"model": "%b", "input": "a"}' % MODEL.encode()
    answer = server.http.post("/v1/embeddings", content=iter([small[:9], small[9:]]), headers=kind)
    assert answer.status_code == 200
    answer = server.http.post("/v1/embeddings", content=chunks(20), headers=kind)
    assert check_error(answer)[0] == 413


def test_only_json_is_read(server):
    """F5: a wrong content type, or a compressed body."""
    for headers in (
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        answer = server.http.post("/v1/embeddings", content=body(), headers=headers)
        assert check_error(answer)[0] == 415


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_a_truncated_body_ends_the_request_and_nothing_else(server):
    """F5: the client promises more than it sends, and goes."""
    with connect(server) as connection:
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    assert server.embed("still there").status_code == 200


def test_a_slow_request_is_cut_off(monkeypatch):
    """F5: slow-loris, in the body and in the head."""
    from polyvec.server import run
    from polyvec.server.limits import Limits

    monkeypatch.setattr(run, "HEADER_SECONDS", 0.3)
    with serving(limits=Limits(read_seconds=0.3)) as server:
        with connect(server) as connection:
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 408
        with connect(server) as connection:
            began = time.monotonic()
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost:")
            assert connection.recv(100) == b"" and time.monotonic() - began < 10


@pytest.mark.parametrize("ids", [[-1], [1_000_000], [[5], [2**31 - 1]], [[5, -7]]])
def test_token_ids_outside_the_vocabulary_are_refused(server, ids):
    """F6: token ids that are negative or beyond the vocabulary."""
    status, sentence = server.error({"input": ids})
    assert (status, f"input[{len(ids) - 1}]" in sentence) == (400, True)


def test_token_ids_beyond_32_bits_are_refused(server):
    """F6: an id that no array here can hold."""
    assert server.error({"input": [2**31]})[0] == 422


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"task": "retrieval"}, 400, "retrieval.query"),
        ({"task": ""}, 400, "task"),
        ({"dimensions": 0}, 422, "dimensions"),
        ({"dimensions": -8}, 422, "dimensions"),
        ({"dimensions": 1025}, 400, "384"),
        ({"dimensions": "8"}, 422, "dimensions"),
        ({"dimensions": 8.5}, 422, "dimensions"),
        ({"dimensions": True}, 422, "dimensions"),
        ({"dimensions": 31, "embedding_type": "binary"}, 400, "multiple of 8"),
        ({"embedding_type": "int4"}, 422, "embedding_type"),
        ({"embedding_type": []}, 422, "embedding_type"),
        ({"encoding_format": "binary"}, 422, "encoding_format"),
        ({"encoding_format": "float", "embedding_type": "base64"}, 422, "differ"),
        ({"output": "sparse", "dimensions": 8}, 400, "dimensions"),
        ({"model": "gpt-5"}, 400, "not found"),
        ({"late_chunking": True, "input": [[5, 6]]}, 400, "late_chunking"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(server, fields, status, named):
    """F7: bad task, dimension 0, 1025, "8", bad encoding."""
    got, sentence = server.error({"input": "a"} | fields)
    assert (got, named in sentence) == (status, True), sentence


def test_any_dimension_up_to_the_width_is_served(server):
    """F7: the hosted API takes 31 too."""
    got = vectors(server.embed("a", dimensions=31))
    assert got.shape == (1, 31)
    np.testing.assert_allclose(np.linalg.norm(got), 1, atol=1e-6)


def test_late_chunking_needs_room_for_all_chunks(server):
    """F8: chunks of more than 8,192 tokens together."""
    chunks = ["the " * 5_000, "fox " * 5_000, "den"]
    status, sentence = server.error({"input": chunks, "late_chunking": True})
    assert (status, "8,192" in sentence) == (400, True)
    status, sentence = server.error({"input": chunks, "late_chunking": True, "truncate": True})
    assert (status, "input[2]" in sentence) == (400, True)


def test_one_chunk_is_its_text(server):
    """F8: late chunking of one chunk is plain embedding."""
    late = vectors(server.embed(["a fox in its den"], late_chunking=True))
    np.testing.assert_allclose(late, vectors(server.embed("a fox in its den")), atol=1e-6)
