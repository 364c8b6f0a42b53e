"""Texts are tokenised as the library tokenises them, whatever their length or characters."""

import numpy as np
import pytest

from polyvec.server import inputs
from tests.server.conftest import MODEL, read_vectors
from tests.server.faults import frame


def words(library, num_tokens):
    """A text of exactly `num_tokens` tokens, special tokens included."""
    vocabulary = library.tokenizer.core.get_vocab()
    word = next(w for w in (p[1:] for p in sorted(vocabulary) if p[0] == "▁") if w.isalpha())
    text = " ".join([word] * (num_tokens - 2))
    assert library.tokenizer.count(text) == num_tokens
    return text


def test_the_longest_text_passes_and_a_longer_one_is_refused(server, long_server, long_library):
    """A text of the maximum length passes, and one more token is an error without truncate.

    With a small model of 1,024 tokens; the bundled one refuses 8,193.
    """
    answer = long_server.embed(words(long_library, 1_024))
    assert answer.json()["usage"]["total_tokens"] == 1_024
    for one, limit in ((long_server, 1_024), (server, 8_192)):
        text = " ".join(["a"] * (limit + 1))
        status, sentence = one.error({"input": ["b", text]})
        assert (status, "input[1]" in sentence, "truncate" in sentence) == (400, True, True)


def test_truncation_reads_the_beginning(long_server, long_library):
    """A text of one token too many, or of a million, has the vector of its beginning."""
    expected = read_vectors(long_server.embed(words(long_library, 1_024)))
    for num_tokens in (1_025, 1_000_000):
        answer = long_server.embed(words(long_library, num_tokens), truncate=True)
        assert answer.json()["usage"]["total_tokens"] == 1_024
        np.testing.assert_allclose(read_vectors(answer), expected, atol=1e-5)
    assert long_server.error({"input": words(long_library, 1_000_000)})[0] == 400


@pytest.mark.filterwarnings("ignore::polyvec.truncation.TruncationWarning")
@pytest.mark.parametrize(
    ("truncate", "rule"), [("end", "end"), (True, "end"), ("start", "start")], ids=str
)
def test_the_api_truncates_as_the_library_does_and_counts(
    long_server, long_library, truncate, rule
):
    texts = ["a fox", "fox " * 1_200 + "den " * 1_200, "den " * 1_200]
    answer = long_server.embed(texts, truncate=truncate)
    expected = long_library.encode(texts, truncate=rule)
    np.testing.assert_allclose(read_vectors(answer), expected, atol=1e-5)
    assert answer.json()["usage"]["truncated_texts"] == 2
    assert "truncated_texts" not in long_server.embed("a fox", truncate=truncate).json()["usage"]


@pytest.mark.parametrize("truncate", ["error", False, None])
def test_a_long_text_is_an_error_unless_truncation_is_chosen(long_server, truncate):
    status, sentence = long_server.error({"input": "fox " * 1_200, "truncate": truncate})
    assert (status, "1,024 tokens" in sentence) == (400, True)


def test_a_document_of_chunks_cannot_lose_its_start(server):
    body = {"input": ["a", "b"], "late_chunking": True, "truncate": "start"}
    status, sentence = server.error(body)
    assert (status, "late_chunking" in sentence) == (400, True)


def test_the_beginning_of_a_long_text_has_the_tokens_of_the_whole(library):
    """Tokenising only the beginning of a long text changes no token."""
    text = "Grüße an 2,5 Millionen Leser… 猫が好き。\n\tfoo_bar " * 6_000
    for prompt in ("", "Represent the document for retrieval: "):
        [whole] = library.tokenizer.core.encode_batch([prompt + text])
        [part] = inputs.tokenise(library.tokenizer, [text], prompt)
        assert part.ids.tolist() == [*whole.ids[: len(part.ids) - 1], whole.ids[-1]]
        assert part.truncated and len(part.ids) == library.tokenizer.max_tokens


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
    """NUL, byte order mark, right-to-left text, combining marks, a 100 kB word, emoji."""
    got = read_vectors(long_server.embed(STRANGE[name], truncate=True))
    np.testing.assert_allclose(got, long_library.encode(STRANGE[name]), atol=1e-5)


def test_half_a_surrogate_pair_is_a_replacement_character(server, library):
    """JSON can contain lone surrogates, but UTF-8 cannot."""
    body = b'{"model": "%b", "input": "fox \\ud83d den", "user": "\\udc00"}' % MODEL.encode()
    answer = server.http.post(
        "/v1/embeddings", content=body, headers={"content-type": "application/json"}
    )
    np.testing.assert_allclose(read_vectors(answer), library.encode("fox \ufffd den"), atol=1e-5)


def test_too_many_tokens_are_refused(server):
    """The request is within the limits of texts and bytes, but beyond that of tokens."""
    status, sentence = server.error({"input": ["the " * 1_500] * 250})
    assert (status, "300,000 tokens" in sentence) == (400, True)


@pytest.mark.parametrize("ids", [[[-1]], [[1_000_000]], [[5], [2**31 - 1]], [[5, -7]]])
def test_token_ids_outside_the_vocabulary_are_refused(server, ids):
    """Token ids that are negative or beyond the vocabulary."""
    status, sentence = server.error({"input": frame(ids)})
    assert (status, f"input[{len(ids) - 1}] holds" in sentence) == (400, True)


def test_token_ids_beyond_32_bits_are_refused(server):
    """An id that no array here can hold."""
    assert server.error({"input": [2**31]})[0] == 422
