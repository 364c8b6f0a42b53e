"""A served model resolves a task once, and gives all outputs from one forward pass."""

import asyncio

import numpy as np
import pytest

from polyvec import rerank
from polyvec.server import model as model_module
from polyvec.server.api_keys import ApiKey
from polyvec.server.errors import ApiError
from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics
from polyvec.server.model import HIDDEN, ServedModel
from polyvec.server.scheduler import Scheduler
from polyvec.tokenizer import Tokenizer
from tests.server.conftest import MODEL, TEXTS


@pytest.fixture
def resolved(monkeypatch):
    """The names of the tasks that the server resolves."""
    names = []
    choose_task = model_module.choose_task

    def count(tasks, name):
        names.append(name)
        return choose_task(tasks, name)

    monkeypatch.setattr(model_module, "choose_task", count)
    return names


@pytest.mark.parametrize(
    ("path", "body", "tasks"),
    [
        ("/v1/embeddings", {"input": TEXTS, "task": "separation"}, ["separation"]),
        ("/v1/embeddings", {"input": ["a"] * 200}, [None]),
        ("/v1/embeddings", {"input": TEXTS, "late_chunking": True}, [None]),
        ("/v1/embeddings", {"input": TEXTS, "output": "sparse"}, [None]),
        ("/v1/embeddings", {"input": TEXTS, "output": "multi_vector"}, [None]),
        (
            "/v1/rerank",
            {"query": "cat", "documents": TEXTS},
            ["retrieval.query", "retrieval.passage"],
        ),
        ("/v1/classify", {"input": TEXTS, "labels": ["a", "b"]}, ["classification"]),
        ("/v2/embed", {"texts": TEXTS, "input_type": "clustering"}, ["separation"]),
    ],
)
def test_a_call_resolves_each_of_its_tasks_once(server, resolved, path, body, tasks):
    answer = server.http.post(path, json={"model": MODEL, **body})
    assert (answer.status_code, resolved) == (200, tasks), answer.text


def encode(server, outputs, task=None):
    """The outputs of `TEXTS`, and the number of texts that the engine has run for them."""
    [model] = server.service.models
    before = server.read_metrics()["polyvec_texts_total"]
    call = model.encode(TEXTS, model.choose_task(task), outputs, ApiKey("me"))
    encoded = asyncio.run_coroutine_threadsafe(call, server.loop).result()
    return encoded, server.read_metrics()["polyvec_texts_total"] - before


@pytest.mark.parametrize("task", [None, "retrieval.query"])
def test_all_outputs_come_from_one_forward_pass(headed, task):
    server, encoder = headed
    encoded, num_texts = encode(server, ["dense", "sparse", "multi_vector", HIDDEN], task)
    assert (num_texts, len(encoded)) == (len(TEXTS), len(TEXTS))
    expected = encoder.encode_all(TEXTS, task=task)
    lengths = np.linalg.norm(encoded.dense, axis=1, keepdims=True)
    np.testing.assert_allclose(encoded.dense / lengths, expected.dense, atol=1e-5)
    np.testing.assert_array_equal(encoded.sparse.indices, expected.sparse.indices)
    np.testing.assert_allclose(encoded.sparse.data, expected.sparse.data, atol=1e-4)
    for got, vectors in zip(encoded.multi_vector, expected.multi_vector, strict=True):
        np.testing.assert_allclose(got, vectors, atol=1e-4)
    for got, hidden in zip(encoded.hidden, encoder.encode_tokens(TEXTS, task=task), strict=True):
        np.testing.assert_allclose(got, hidden, atol=1e-4)


@pytest.mark.parametrize(
    "outputs", [["dense"], ["sparse"], ["multi_vector"], ["dense", "sparse"], [HIDDEN]]
)
def test_an_output_is_the_same_alone_and_together(headed, outputs):
    server, _ = headed
    everything, _ = encode(server, ["dense", "sparse", "multi_vector", HIDDEN])
    encoded, _ = encode(server, outputs)
    for name in ("means", "multi_vector", "hidden"):
        got, expected = getattr(encoded, name), getattr(everything, name)
        if ("dense" if name == "means" else name) not in outputs:
            assert got is None
            continue
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    if "sparse" in outputs:
        np.testing.assert_allclose(encoded.sparse.data, everything.sparse.data, atol=1e-5)


def test_documents_are_ranked_as_by_the_library(server, library):
    [model] = server.service.models
    call = model.rerank("cat", TEXTS, ApiKey("me"), truncate=False, param="documents")
    ranked, _ = asyncio.run_coroutine_threadsafe(call, server.loop).result()
    expected = rerank(library, "cat", TEXTS)
    assert [one.index for one in ranked] == [one.index for one in expected]
    scores = [one.score for one in expected]
    np.testing.assert_allclose([one.score for one in ranked], scores, atol=1e-6)


def test_a_model_with_other_special_tokens_names_its_own(tiny_model, tiny_config, tmp_path):
    """Token ids are framed by the special tokens of the model's tokenizer, whatever their names."""
    renamed = (tiny_model / "tokenizer.json").read_text("utf-8")
    for old, new in (("<s>", "[CLS]"), ("</s>", "[SEP]")):
        renamed = renamed.replace(f'"{old}"', f'"{new}"')
    (tmp_path / "tokenizer.json").write_text(renamed, "utf-8")
    tokenizer = Tokenizer.load(tmp_path, tiny_config.max_tokens)
    scheduler = Scheduler(lambda: None, tiny_config.width, Metrics())
    model = ServedModel("m", tiny_config, tokenizer, {}, scheduler, Limits(), Metrics())
    model.check_texts([[0, 7, 2]], "input")
    with pytest.raises(ApiError, match=r"begins with \[CLS\] \(0\) and ends with \[SEP\] \(2\)"):
        model.check_texts([[7, 8]], "input")
    with pytest.raises(ApiError, match=r"input\[0\] is empty"):
        model.check_texts([[0, 2]], "input")
