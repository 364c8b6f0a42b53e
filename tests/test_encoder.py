"""The encoder on each engine."""

import asyncio
import copy
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from polyvec import Encoder, NotFiniteError
from polyvec import encoder as encoder_module
from polyvec import texts as texts_module
from polyvec.checkpoint import Weights, load_checkpoint, save_checkpoint
from polyvec.config import ModelConfig
from polyvec.tasks import TASKS
from tests.conftest import MakeEngine

TASK_NAMES = [task.name for task in TASKS]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four texts, so that a few texts fill several."""
    monkeypatch.setattr(texts_module, "MAX_BLOCK_TEXTS", 4)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are not checked, as for users. In other tests they are checked at every call."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_a_batch_gives_the_vectors_of_its_texts_alone(
    encoder: Encoder, sentences: list[str], rng: np.random.Generator
) -> None:
    texts = [sentences[i][: rng.integers(0, 60)] for i in rng.integers(0, 6, 40)]
    tasks = [[*TASK_NAMES, None][i] for i in rng.integers(0, 6, 40)]
    together = encoder.encode(texts, task=tasks)
    for i in range(0, 40, 5):
        alone = encoder.encode(texts[i], task=tasks[i])
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-5)


def test_order_and_blocks_do_not_matter(
    encoder: Encoder, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [sentence[i:] for sentence in sentences for i in range(5)]
    tasks = (TASK_NAMES * 6)[: len(texts)]
    plain = encoder.encode(texts, task=tasks)
    monkeypatch.setattr(texts_module, "MAX_BLOCK_TEXTS", 7)
    monkeypatch.setattr(encoder.engine, "batch_tokens", 50)
    backwards = encoder.encode(texts[::-1], task=tasks[::-1])[::-1]
    np.testing.assert_allclose(backwards, plain, atol=1e-5)


def test_mixed_tasks_give_the_vectors_of_each_task_alone(
    encoder: Encoder, sentences: list[str]
) -> None:
    for task in (*TASK_NAMES, None):
        tasks = [task if i % 2 else "separation" for i in range(len(sentences))]
        mixed = encoder.encode(sentences, task=tasks)
        np.testing.assert_allclose(
            mixed[1::2], encoder.encode(sentences[1::2], task=task), atol=1e-5
        )


def test_a_stream_gives_the_rows_of_encode(
    encoder: Encoder, sentences: list[str], small_blocks: None
) -> None:
    texts = sentences * 3
    parts = list(encoder.encode_stream(iter(texts), task="separation", dim=16))
    assert [len(part) for part in parts] == [4, 4, 4, 4, 2]
    np.testing.assert_allclose(
        np.concatenate(parts), encoder.encode(texts, task="separation", dim=16), atol=1e-6
    )


def test_a_stream_reads_no_more_than_it_must(
    encoder: Encoder, sentences: list[str], small_blocks: None
) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield sentences[read % len(sentences)]

    stream = encoder.encode_stream(endless())
    next(stream)
    assert read <= 5


def test_long_texts_make_small_blocks(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MAX_BLOCK_CHARACTERS", 100)
    parts = encoder.encode_stream(["a" * 90, "b" * 90, "c", "d" * 500])
    assert [len(part) for part in parts] == [1, 2, 1]


@pytest.mark.parametrize("dim", [8, 16, 32])
def test_every_vector_has_length_one(encoder: Encoder, sentences: list[str], dim: int) -> None:
    vectors = encoder.encode(sentences, task="text-matching", dim=dim)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(sentences), dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_smaller_size_is_the_start_of_the_larger(encoder: Encoder, sentences: list[str]) -> None:
    large, small = (encoder.encode(sentences, dim=dim) for dim in (32, 8))
    cut = large[:, :8]
    np.testing.assert_allclose(small, cut / np.linalg.norm(cut, axis=1)[:, None], atol=1e-6)


def test_other_sizes_need_any_dim(encoder: Encoder, sentences: list[str]) -> None:
    with pytest.raises(ValueError, match=r"for 8, 16, 32; any_dim=True"):
        encoder.encode(sentences, dim=9)
    assert encoder.encode(sentences, dim=9, any_dim=True).shape[1] == 9


@pytest.mark.parametrize("dim", [0, 33, -8, 8.0, True, "8"])
def test_impossible_sizes_are_refused(encoder: Encoder, unchecked: None, dim: object) -> None:
    with pytest.raises(ValueError, match=r"dim is .* 1\.\.32"):
        encoder.encode(["fox"], dim=dim, any_dim=True)


def test_a_string_is_one_text(encoder: Encoder) -> None:
    np.testing.assert_allclose(encoder.encode("fox"), encoder.encode(["fox"]), atol=1e-6)
    with pytest.raises(ValueError, match="put a single one in a list"):
        encoder.encode_stream("fox")


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode([], dim=8).shape == (0, 8)
    assert list(encoder.encode_stream([])) == []
    assert encoder.encode_tokens([]) == []


@pytest.mark.filterwarnings("ignore::polyvec.truncation.TruncationWarning")
@pytest.mark.parametrize("text", ["", " ", "\0", "\ud800", "a" * 5000])
def test_odd_texts_have_vectors(encoder: Encoder, text: str) -> None:
    assert np.isfinite(encoder.encode([text, "fox"])).all()


@pytest.mark.parametrize(
    ("texts", "task", "message"),
    [
        (["a", 7], None, "text 1 .* not int"),
        (["a", None], None, "text 1 .* not NoneType"),
        ([b"a"], None, "text 0 .* not bytes"),
        ({"a": "text"}, None, "texts is a dict"),
        (["a"], {"separation": 1}, "task is a dict"),
        (["a"], "retrieval", "unknown task 'retrieval'"),
        (["a", "b"], ["separation"], "more texts than the 1 tasks"),
        (["a"], ["separation", None], "more tasks than texts"),
    ],
)
def test_wrong_arguments_are_explained(
    encoder: Encoder, unchecked: None, texts: list[str], task: list[str] | str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.encode(texts, task=task)


def test_token_vectors_match_the_tokens_and_average_to_the_vector(
    encoder: Encoder, sentences: list[str]
) -> None:
    states = encoder.encode_tokens(sentences, task="retrieval.query")
    tokens = encoder.tokenizer.encode(sentences, [TASKS[0].prompt] * len(sentences))
    assert [len(rows) for rows in states] == [len(text.ids) for text in tokens]
    means = np.stack([rows.mean(0) for rows in states])
    vectors = encoder.encode(sentences, task="retrieval.query")
    np.testing.assert_allclose(means / np.linalg.norm(means, axis=1)[:, None], vectors, atol=1e-5)


def test_a_nan_is_an_error_that_names_its_row(
    make_engine: MakeEngine,
    encoder: Encoder,
    tiny_config: ModelConfig,
    tiny_weights: Weights,
    small_blocks: None,
) -> None:
    texts = ["a fox", "the dog", "a fox", "dog", "fox", "棕色狐狸", "a dog"]
    bad_id = encoder.tokenizer.encode(["狐"], [""])[0].ids[-2]
    poisoned = dict(tiny_weights)
    table = poisoned["embeddings.word.weight"].copy()
    table[bad_id] = np.inf
    poisoned["embeddings.word.weight"] = table
    broken = Encoder(tiny_config, encoder.tokenizer, make_engine(tiny_config, poisoned))
    # Texts are counted over the whole call: this one is in the second block.
    for encode in (broken.encode, broken.encode_tokens):
        with pytest.raises(NotFiniteError, match="text 5 ") as caught:
            encode(texts)
        assert caught.value.rows == [5]
    good = texts[:5] + texts[6:]
    np.testing.assert_allclose(broken.encode(good), encoder.encode(good), atol=1e-5)


def test_a_bar_appears_only_if_requested_or_on_a_terminal(
    encoder: Encoder, sentences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.encode(sentences)
    assert capsys.readouterr().err == ""


def test_similarity_is_the_cosine(encoder: Encoder, sentences: list[str]) -> None:
    vectors = encoder.encode(sentences)
    np.testing.assert_allclose(
        encoder.similarity(vectors, vectors[:2]), vectors @ vectors[:2].T, atol=1e-6
    )


def test_a_folder_loads_and_gives_the_same_bits_again(
    tiny_model: Path, sentences: list[str]
) -> None:
    first, second = (Encoder.load(tiny_model, device="cpu").encode(sentences) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_loading_for_one_task_gives_the_vectors_of_the_adapter(
    tiny_model: Path, sentences: list[str]
) -> None:
    task = "retrieval.passage"
    merged = Encoder.load(tiny_model, device="cpu", precision="float32", merge=task)
    mixed = Encoder.load(tiny_model, device="cpu", precision="float32")
    np.testing.assert_allclose(
        merged.encode(sentences, task=task), mixed.encode(sentences, task=task), atol=1e-5
    )


def test_8_bit_products_are_near_exact_ones_and_a_merged_adapter_is_not_lost(sentences):
    """The bundled model is stored in 8 bits, whose steps are larger than an adapter's update."""
    task = "text-matching"
    exact = Encoder.load(device="cpu", precision="float32").encode(sentences, task=task)
    bare = Encoder.load(device="cpu").encode(sentences)
    assert (exact * bare).sum(1).mean() < 0.95
    for merge in (None, task):
        found = Encoder.load(device="cpu", merge=merge).encode(sentences, task=task)
        assert (exact * found).sum(1).min() > 0.995


def test_a_bf16_checkpoint_loads(
    tiny_model: Path, tmp_path: Path, make_engine: MakeEngine, sentences: list[str]
) -> None:
    config, weights = load_checkpoint(tiny_model)
    save_checkpoint(tmp_path / "half", config, weights, dtype="bfloat16")
    (tmp_path / "half" / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    full = Encoder.load(tiny_model, device="cpu", precision="float32")
    half = Encoder(config, full.tokenizer, make_engine(*load_checkpoint(tmp_path / "half")))
    cosines = (half.encode(sentences) * full.encode(sentences)).sum(1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/at/all", "no folder /nowhere/at/all"),
        ("nowhere", "no folder nowhere"),
        ("../a/b", "no folder"),
    ],
)
def test_a_missing_model_is_explained(model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder.load(model)


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'polyvec\[hub\]'"):
        Encoder.load("org/name")


@pytest.mark.parametrize("device", ["gpu", "", "cuda0"])
def test_an_unknown_device_is_explained(tiny_model: Path, device: str) -> None:
    with pytest.raises(ValueError, match="must be 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        Encoder.load(tiny_model, device=device)


def test_a_foreign_tokenizer_is_refused(encoder: Encoder, tiny_config: ModelConfig) -> None:
    from dataclasses import replace

    small = replace(tiny_config, vocab_size=50)
    with pytest.raises(ValueError, match="do not belong together"):
        Encoder(small, encoder.tokenizer, encoder.engine)


def test_encoding_on_the_cpu_needs_neither_torch_nor_transformers(tiny_model: Path) -> None:
    code = f"""
import sys, polyvec
polyvec.Encoder.load({str(tiny_model)!r}).encode(["fox"])
sys.exit(bool({{"torch", "transformers", "huggingface_hub", "pandas"}} & {{*sys.modules}}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_iterator_is_read_once(encoder: Encoder, sentences: list[str]) -> None:
    texts, tasks = sentences[:3], ["separation", None, "text-matching"]
    expected = encoder.encode(texts, task=tasks)
    found = encoder.encode_all(iter(texts), task=iter(tasks), outputs=iter(["dense"]))
    np.testing.assert_allclose(found.dense, expected, atol=1e-6)
    chunks = encoder.encode_chunks(text for text in texts)
    assert chunks.texts == texts


def test_threads_that_share_an_encoder_give_what_it_gives_alone(
    encoder: Encoder, sentences: list[str]
) -> None:
    batches = [[f"{sentence} {n}" for sentence in sentences] for n in range(12)]
    tasks = [[*TASK_NAMES, None][n % 6] for n in range(12)]
    alone = [_encode(encoder, pair) for pair in _pairs(batches, tasks)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: _encode(encoder, pair), _pairs(batches, tasks)))

    async def gather() -> list[np.ndarray]:
        calls = (asyncio.to_thread(_encode, encoder, pair) for pair in _pairs(batches, tasks))
        return await asyncio.gather(*calls)

    for found in (together, asyncio.run(gather())):
        np.testing.assert_array_equal(found, alone)


def _encode(encoder: Encoder, pair: tuple) -> np.ndarray:
    return encoder.encode(pair[0], task=pair[1])


def _pairs(batches: list[list[str]], tasks: list[str | None]) -> list[tuple]:
    return list(zip(batches, tasks, strict=True))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Encoder:
    """The tiny model, loaded from its folder with options of its own."""
    return Encoder.load(
        tiny_model, device="cpu", precision="float32", merge="separation", threads=1
    )


def test_a_pickle_holds_settings_and_no_weights(
    loaded: Encoder, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(loaded)
    assert len(data) < 2_000
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(data)
    np.testing.assert_array_equal(
        again.encode(sentences, task="separation"), loaded.encode(sentences, task="separation")
    )
    # It is merged and limited as the other one.
    with pytest.raises(ValueError, match="merged"):
        again.encode("fox")
    assert pickle.dumps(again) == data


def test_a_relative_folder_is_found_from_any_other(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    data = pickle.dumps(Encoder.load(tiny_model.name, device="cpu"))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(data).config.width == 32


def test_a_copy_shares_the_weights(loaded: Encoder, encoder: Encoder, sentences: list[str]) -> None:
    for one in (loaded, encoder):
        for copied in (copy.copy(one), copy.deepcopy(one), copy.deepcopy([one])[0]):
            assert copied is not one and copied.engine is one.engine
            np.testing.assert_array_equal(
                copied.encode(sentences[:2], task="separation"),
                one.encode(sentences[:2], task="separation"),
            )
    assert pickle.dumps(copy.deepcopy(loaded)) == pickle.dumps(loaded)


def test_an_encoder_of_parts_cannot_be_pickled(encoder: Encoder) -> None:
    with pytest.raises(TypeError, match=r"only an encoder of Encoder\.load"):
        pickle.dumps(encoder)


def test_a_bound_method_can_be_cloned_and_sent(loaded: Encoder) -> None:
    encode = pickle.loads(pickle.dumps(loaded.encode))
    assert encode(["fox"], task="separation").shape == (1, 32)


FORKS = """
import os, sys, threading
from polyvec import Encoder
encoder = Encoder.load(sys.argv[1], device="cpu")
expected = encoder.encode(["fox"])
stop = threading.Event()
def work():
    while not stop.is_set():
        encoder.encode(["some words of a fox"] * 50)
threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
statuses = []
for _ in range(8):
    child = os.fork()
    if not child:
        os._exit(0 if (encoder.encode(["fox"]) == expected).all() else 1)
    statuses.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
assert (encoder.encode(["fox"]) == expected).all()
sys.exit(any(statuses))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without forks")
def test_a_process_that_is_forked_while_threads_encode_can_encode(tiny_model: Path) -> None:
    command = [sys.executable, "-c", FORKS, str(tiny_model)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_a_number_of_threads_reaches_the_engine_and_the_tokenizer(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, make = [], encoder_module.make_engine

    def record(*arguments: object) -> object:
        seen.append(arguments[-1])
        return make(*arguments)

    monkeypatch.setattr("polyvec.encoder.make_engine", record)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert Encoder.load(tiny_model, device="cpu").tokenizer.num_threads == 2
    assert Encoder.load(tiny_model, device="cpu", threads=1).tokenizer.num_threads == 1
    assert seen == [2, 1]
