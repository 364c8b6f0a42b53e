"""/v1/embeddings gives the vectors of the library."""

import base64
import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from polyvec import TASKS, Semantic, Sentences, to_binary, to_ubinary
from tests.server.conftest import MODEL, read_vectors

TEXTS = [
    "Where does the cat sleep?",
    "Die Katze schläft auf dem Stuhl.",
    "Le pain doit refroidir une heure.",
    "猫在椅子上睡觉。",
    "a",
    "bread and water " * 12,
    "Шустрая бурая лиса прыгает через ленивого пса.",
]


NAMES = [None, *(task.name for task in TASKS)]


@pytest.mark.parametrize("task", NAMES)
def test_the_server_gives_the_librarys_vectors(server, library, task):
    got = read_vectors(server.embed(TEXTS, task=task))
    np.testing.assert_allclose(got, library.encode(TEXTS, task=task), atol=2e-6)


def test_usage_counts_what_the_model_read(server, library):
    usage = server.embed(TEXTS, task="retrieval.query").json()["usage"]
    prompts = [library.config.tasks[0].prompt] * len(TEXTS)
    expected = sum(len(text.ids) for text in library.tokenizer.encode(TEXTS, prompts))
    assert usage == {"total_tokens": expected, "prompt_tokens": expected}


def test_mixed_shuffled_concurrent_requests_get_their_own_vectors(server, library):
    """Vectors over HTTP do not depend on the batch, for all tasks and dims."""
    generator = random.Random(0)
    expected = {task: library.encode(TEXTS, task=task) for task in NAMES}
    dims = [*library.config.dims, 31, 1]

    def ask(number):
        chosen = generator.choices(range(len(TEXTS)), k=generator.randint(1, 6))
        task, dim = generator.choice(NAMES), generator.choice(dims)
        got = read_vectors(server.embed([TEXTS[i] for i in chosen], task=task, dimensions=dim))
        cut = expected[task][chosen, :dim]
        return np.abs(got - cut / np.linalg.norm(cut, axis=1, keepdims=True)).max()

    with ThreadPoolExecutor(12) as pool:
        worst = max(pool.map(ask, range(48)))
    assert worst < 1e-5


@pytest.mark.parametrize("dim", [1, 31, 32, 384])
def test_vectors_have_length_one_in_every_encoding(server, dim):
    """Float and base64 are equal bit for bit."""
    plain = read_vectors(server.embed(TEXTS, dimensions=dim))
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-6)
    rows = server.embed(TEXTS, dimensions=dim, embedding_type="base64").json()["data"]
    packed = np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])
    # Two requests are two batches, whose float rounding may differ; one request's are one.
    both = server.embed(TEXTS, dimensions=dim, embedding_type=["float", "base64"]).json()["data"]
    for row in both:
        bits = np.frombuffer(base64.b64decode(row["embedding_types"]["base64"]), "<u4")
        assert np.array_equal(np.float32(row["embedding"]).view(np.uint32), bits)
    np.testing.assert_allclose(packed, plain, atol=1e-6)


def test_binary_vectors_are_the_librarys(server, library):
    expected = library.encode(TEXTS)
    for kind, convert in (("binary", to_binary), ("ubinary", to_ubinary)):
        rows = server.embed(TEXTS, embedding_type=kind).json()["data"]
        got = np.array([row["embedding"] for row in rows])
        # A number next to zero may fall on either side.
        differ = np.unpackbits((got ^ convert(expected)).astype(np.uint8)).sum()
        assert differ <= 2


def test_one_type_in_a_list_is_that_type(server):
    [one] = server.embed("a", embedding_type=["ubinary"]).json()["data"]
    [other] = server.embed("a", embedding_type="ubinary").json()["data"]
    assert one == other and len(one["embedding"]) == 384 // 8


def test_without_normalisation_vectors_keep_their_length(server):
    raw = read_vectors(server.embed(TEXTS, normalized=False, dimensions=64))
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 1e-3).all()
    np.testing.assert_allclose(
        raw / lengths, read_vectors(server.embed(TEXTS, dimensions=64)), atol=1e-5
    )


@pytest.mark.parametrize("task", NAMES)
def test_token_ids_are_as_good_as_their_text(server, library, task):
    ids = [text.ids.tolist() for text in library.tokenizer.encode(TEXTS, [""] * len(TEXTS))]
    expected = read_vectors(server.embed(TEXTS, task=task))
    for form, vectors in ((ids, expected), (ids[0], expected[:1])):
        np.testing.assert_allclose(read_vectors(server.embed(form, task=task)), vectors, atol=2e-6)


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([9241, 1587, 279, 8415, 6212, 30], id="another tokenizer"),
        pytest.param([[0, 5, 6, 2], [9241, 30]], id="another tokenizer beside our own"),
        pytest.param([5, 6], id="neither"),
        pytest.param([0, 5, 6], id="no end"),
        pytest.param([5, 6, 2], id="no start"),
        pytest.param([0, 5, 2, 1, 1], id="padding"),
        pytest.param([2, 5, 0], id="the wrong way round"),
        pytest.param([0], id="one token"),
    ],
)
def test_token_ids_that_this_models_tokenizer_cannot_write_are_refused(server, ids):
    """Ids of another tokenizer are in the range of the vocabulary, but mean other words."""
    for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs")):
        answer = server.http.post(path, json={"model": MODEL, field: ids})
        sentence = answer.json()["detail"]
        assert answer.status_code == 400, sentence
        named = f"{field}[{1 if isinstance(ids[0], list) else 0}]"
        assert all(part in sentence for part in ("<s>", "</s>", named, "string")), sentence


def test_objects_with_a_text_are_texts(server):
    same = [{"text": TEXTS[0]}, TEXTS[0]]
    got = read_vectors(server.embed(same))
    np.testing.assert_allclose(got[0], got[1], atol=1e-6)
    assert (
        read_vectors(server.embed({"text": "a"})).shape
        == read_vectors(server.embed("a")).shape
        == (1, 384)
    )


def test_late_chunking_reads_the_chunks_as_one_document(server, library):
    """The reference: hidden states of the joined text, averaged over each chunk's tokens."""
    chunks = ["Berlin is the capital.", "It has many lakes,", "and the city grows."]
    document = " ".join(chunks)
    for task in (None, "retrieval.passage"):
        [states] = library.encode_tokens([document], task=task)
        prompt = "" if task is None else library.config.tasks[1].prompt
        [tokens] = library.tokenizer.encode([document], [prompt])
        owner = [
            next(i for i in range(3) if end <= len(" ".join(chunks[: i + 1])))
            for _, end in tokens.offsets.tolist()
        ]
        owner[: tokens.num_prompt] = [0] * tokens.num_prompt
        expected = np.stack([states[np.array(owner) == i].mean(0) for i in range(3)])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        got = read_vectors(server.embed(chunks, task=task, late_chunking=True))
        np.testing.assert_allclose(got, expected, atol=1e-5)
        alone = read_vectors(server.embed(chunks, task=task))
        assert np.abs(got - alone).max() > 0.01, "a chunk does not know its document"


@pytest.mark.parametrize("task", [None, "retrieval.query"])
def test_tokens_have_the_librarys_weights_and_vectors(headed, jina_schema, sentences, task):
    server, encoder = headed
    answer = server.embed(sentences, output="sparse", task=task, truncate=True).json()
    jina_schema("EmbeddingResponse", answer)
    sparse = encoder.encode_sparse(sentences, task=task)
    for row, weights in zip(answer["data"], sparse.to_dicts(encoder.tokenizer), strict=True):
        assert row["embedding"] == pytest.approx(weights, abs=1e-4)
    ask = {"inputs": sentences, "prompt_name": task, "truncate": True}
    for number, pairs in enumerate(server.http.post("/embed_sparse", json=ask).json()):
        ids, weights = sparse.row(number)
        assert [pair["index"] for pair in pairs] == ids.tolist()
        np.testing.assert_allclose([pair["value"] for pair in pairs], weights, atol=1e-4)
    answer = server.embed(sentences, output="multi_vector", task=task, truncate=True).json()
    jina_schema("EmbeddingResponse", answer)
    for row, vectors in zip(
        answer["data"], encoder.encode_multi_vector(sentences, task=task), strict=True
    ):
        np.testing.assert_allclose(np.float32(row["embeddings"]), vectors, atol=1e-4)


def test_heads_refuse_what_they_do_not_have(headed, long_server):
    for fields, named in (
        ({"output": "sparse", "dimensions": 8}, "dimensions"),
        ({"output": "multi_vector", "late_chunking": True}, "late_chunking"),
        ({"output": "multi_vector", "embedding_type": "binary"}, "binary"),
        ({"output": "multi_vector", "embedding_type": ["float", "base64"]}, "one"),
        ({"output": "sparse", "input": [[5, 6]]}, "token ids"),
    ):
        status, sentence = headed[0].error({"input": "a fox"} | fields)
        assert (status, named in sentence) == (400, True), sentence
    for output in ("sparse", "multi_vector"):
        status, sentence = long_server.error({"input": "a", "output": output})
        assert (status, "no " in sentence and "head" in sentence) == (400, True)


def test_answers_keep_to_the_hosted_schema(server, jina_schema):
    for fields in (
        {},
        {"embedding_type": "base64"},
        {"embedding_type": ["binary", "float"]},
        {"late_chunking": True},
    ):
        jina_schema("EmbeddingResponse", server.embed(TEXTS[:3], **fields).json())
    jina_schema("ErrorResponse", server.embed("").json())
    jina_schema("HTTPValidationError", server.embed("a", dimensions="8").json())


def test_a_large_answer_is_whole(server, library):
    texts = [f"{number} bottles" for number in range(300)]
    answer = server.embed(texts, dimensions=32)
    assert json.loads(answer.content)["model"] == MODEL
    np.testing.assert_allclose(read_vectors(answer), library.encode(texts, dim=32), atol=2e-6)


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
def test_a_request_without_text_is_refused_by_its_field(server, texts, status, named, late):
    """Empty string, empty list, white space; and an empty chunk, a chunk of only spaces."""
    got, sentence = server.error({"input": texts, "late_chunking": late})
    assert (got, named in sentence) == (status, True), sentence


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
    """Tasks, dimensions, encodings and models that do not exist."""
    got, sentence = server.error({"input": "a"} | fields)
    assert (got, named in sentence) == (status, True), sentence


def test_any_dimension_up_to_the_width_is_served(server):
    """Jina's hosted API also accepts 31."""
    got = read_vectors(server.embed("a", dimensions=31))
    assert got.shape == (1, 31)
    np.testing.assert_allclose(np.linalg.norm(got), 1, atol=1e-6)


def test_late_chunking_needs_room_for_all_chunks(server):
    """Chunks of more than 8,192 tokens together."""
    chunks = ["the " * 5_000, "fox " * 5_000, "den"]
    status, sentence = server.error({"input": chunks, "late_chunking": True})
    assert (status, "8,192" in sentence) == (400, True)
    status, sentence = server.error({"input": chunks, "late_chunking": True, "truncate": True})
    assert (status, "input[2]" in sentence) == (400, True)


def test_one_chunk_is_its_text(server):
    """Late chunking of one chunk is plain embedding."""
    late = read_vectors(server.embed(["a fox in its den"], late_chunking=True))
    np.testing.assert_allclose(late, read_vectors(server.embed("a fox in its den")), atol=1e-6)


DOCUMENT = (
    "The fox 🦊 sleeps in its den. Snow falls; nobody minds.\n\n猫在椅子上睡觉。Brot backen! " * 60
)
"""More tokens than the model with 1,024 reads at once, and characters of four bytes."""


@pytest.mark.parametrize(
    ("chunking", "chunks"),
    [
        ({"tokens": 50}, 50),
        ({"sentences": 7}, Sentences(7)),
        ({"sentences": 9, "language": "de"}, Sentences(9, "de")),
        ({"semantic": {}}, Semantic()),
        ({"semantic": {"percentile": 70, "buffer": 0}}, Semantic(70, 0)),
        ({"spans": [[0, 40], [20, 4_000], [9, 9]]}, [(0, 40), (20, 4_000), (9, 9)]),
    ],
)
@pytest.mark.parametrize("task", [None, "retrieval.passage"])
def test_one_text_is_cut_and_encoded_as_the_library_does_it(
    long_server, long_library, jina_schema, chunking, chunks, task
):
    """Late chunking beyond the model's longest text: offsets and vectors are the library's."""
    assert long_library.tokenizer.count(DOCUMENT) > 2 * long_library.config.max_tokens
    expected = long_library.encode_chunks(
        DOCUMENT, task=task, chunks=chunks, dim=8, any_dim=True, progress=False
    )
    answer = long_server.embed(
        DOCUMENT, task=task, dimensions=8, late_chunking=True, chunking=chunking
    )
    np.testing.assert_allclose(read_vectors(answer), expected.vectors, atol=1e-5)
    data = answer.json()["data"]
    assert [[one["start"], one["end"]] for one in data] == expected.offsets.tolist()
    jina_schema("EmbeddingResponse", answer.json())


def test_a_short_text_that_is_one_chunk_has_its_own_vector(server, library):
    answer = server.embed("a fox", late_chunking=True, chunking={"tokens": 99})
    np.testing.assert_allclose(read_vectors(answer), library.encode("a fox"), atol=1e-5)
    assert answer.json()["data"][0]["end"] == len("a fox")


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"chunking": {"tokens": 5}, "late_chunking": False}, 400, "late_chunking: true"),
        ({"chunking": {"tokens": 5}, "input": ["a", "b"]}, 400, "one text"),
        ({"chunking": {"tokens": 5}, "input": [[0, 5, 2]]}, 400, "token ids"),
        ({"chunking": {"tokens": 0}}, 422, "chunking.tokens"),
        ({"chunking": {}}, 422, "one of tokens"),
        ({"chunking": {"tokens": 5, "sentences": 2}}, 422, "one of tokens"),
        ({"chunking": {"paragraphs": 5}}, 422, "paragraphs"),
        ({"chunking": {"spans": [[0, 9_999]]}}, 400, "outside the document"),
        ({"chunking": {"spans": []}}, 400, "0 chunks"),
        ({"chunking": {"semantic": {"percentile": 101}}}, 422, "percentile"),
        ({"chunking": {"tokens": 1}, "input": "a " * 3_000}, 400, "chunks"),
        ({"chunking": {"semantic": {}}, "input": "Ah. " * 3_000}, 400, "sentences"),
        ({"chunking": {"tokens": 9}, "input": "a " * 300_000}, 400, "300,000 tokens"),
        ({"chunking": {"tokens": 9}, "output": "sparse"}, 400, "late_chunking"),
        ({"chunking": {"tokens": 9}, "input": " "}, 400, "empty"),
    ],
)
def test_an_impossible_chunking_is_refused_by_its_field(server, fields, status, named):
    got, sentence = server.error({"input": "a fox", "late_chunking": True} | fields)
    assert (got, named in sentence) == (status, True), sentence


@pytest.mark.parametrize(
    "path",
    [
        "/embeddings",
        "/openai/v1/embeddings",
        f"/openai/deployments/{MODEL}/embeddings?api-version=2024-06-01",
        f"/openai/deployments/jina-ai/{MODEL}/embeddings",
    ],
)
def test_paths_of_other_servers_embed_and_ignore_unknown_fields(server, library, path):
    """The model is optional there: it is the deployment in the path, or the first model."""
    answer = server.http.post(path, json={"input": TEXTS[:2], "surprise": [1]})
    np.testing.assert_allclose(read_vectors(answer), library.encode(TEXTS[:2]), atol=2e-6)
    assert server.http.post("/v1/embeddings", json={"input": "a"}).status_code == 422


def test_a_deployment_names_the_model(server):
    path = "/openai/deployments/{}/embeddings"
    answer = server.http.post(path.format(MODEL), json={"model": "gpt-5", "input": "a"})
    assert answer.json()["model"] == MODEL
    answer = server.http.post(path.format("gpt-5"), json={"model": MODEL, "input": "a"})
    assert answer.status_code == 400 and "gpt-5" in answer.json()["error"]["message"]
