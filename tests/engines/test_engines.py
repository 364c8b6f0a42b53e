"""Every engine: results depend on the text and its task, and on nothing else."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyvec.batch import Batch, make_batch
from polyvec.checkpoint import Weights, load_checkpoint, save_compact
from polyvec.config import ModelConfig
from polyvec.engines import Engine
from polyvec.engines.openvino import OpenVINOEngine
from polyvec.engines.openvino_import import ov
from polyvec.engines.torch import TorchEngine
from tests.conftest import MakeEngine

LENGTHS = (5, 40, 2, 9, 9, 41, 64, 17)
ADAPTER_IDS = (0, 1, -1, 4, 2, 3, 1, -1)


@pytest.fixture
def texts(rng: np.random.Generator, tiny_config: ModelConfig) -> list[list[int]]:
    """Random texts of `LENGTHS` tokens."""
    return [rng.integers(4, tiny_config.vocab_size, length).tolist() for length in LENGTHS]


@pytest.fixture
def batch(texts: list[list[int]]) -> Batch:
    """These texts, with every task and with none."""
    return make_batch(texts, ADAPTER_IDS)


def split(engine: Engine, batch: Batch) -> list[np.ndarray]:
    """Each text's hidden states."""
    return np.split(engine.hidden(batch), batch.ends[:-1])


def test_a_batch_gives_the_states_of_its_texts_alone(
    engine: Engine, batch: Batch, texts: list[list[int]]
) -> None:
    for text, adapter_id, states in zip(texts, ADAPTER_IDS, split(engine, batch), strict=True):
        alone = engine.hidden(make_batch([text], [adapter_id]))
        np.testing.assert_allclose(states, alone, atol=1e-5)


def test_the_order_of_a_batch_does_not_matter(
    engine: Engine, batch: Batch, texts: list[list[int]]
) -> None:
    order = np.random.default_rng(1).permutation(len(texts))
    shuffled = make_batch([texts[i] for i in order], [ADAPTER_IDS[i] for i in order])
    states = split(engine, batch)
    for i, found in zip(order, split(engine, shuffled), strict=True):
        np.testing.assert_allclose(found, states[i], atol=1e-5)


def test_every_task_encodes_a_text_differently(engine: Engine, texts: list[list[int]]) -> None:
    adapter_ids = [-1, 0, 1, 2, 3, 4]
    states = split(engine, make_batch([texts[0]] * 6, adapter_ids))
    for i in range(6):
        for j in range(i):
            assert np.abs(states[i] - states[j]).max() > 0.01


@pytest.mark.parametrize("adapter_id", range(5))
def test_merged_weights_give_the_states_of_the_adapter(
    make_engine: MakeEngine,
    engine: Engine,
    tiny_config: ModelConfig,
    tiny_weights: Weights,
    texts: list[list[int]],
    adapter_id: int,
) -> None:
    same_task = make_batch(texts, [adapter_id] * len(texts))
    merged = make_engine(tiny_config, tiny_weights, merge_adapter=adapter_id)
    np.testing.assert_allclose(merged.hidden(same_task), engine.hidden(same_task), atol=1e-4)


def test_a_merged_engine_refuses_other_tasks(
    make_engine: MakeEngine, tiny_config: ModelConfig, tiny_weights: Weights, batch: Batch
) -> None:
    with pytest.raises(ValueError, match="merged with adapter 2"):
        make_engine(tiny_config, tiny_weights, merge_adapter=2).hidden(batch)


def test_adapters_of_zeros_change_nothing(
    make_engine: MakeEngine,
    tiny_config: ModelConfig,
    tiny_weights: Weights,
    batch: Batch,
    texts: list[list[int]],
) -> None:
    # The side that starts at zero: B in linears, A in embeddings.
    zeroed = {
        name: np.zeros_like(array)
        if name.endswith("lora_b" if name.startswith("layers") else "lora_a")
        else array
        for name, array in tiny_weights.items()
    }
    engine = make_engine(tiny_config, zeroed)
    bare = make_batch(texts, [-1] * len(texts))
    np.testing.assert_allclose(engine.hidden(batch), engine.hidden(bare), atol=1e-6)


def test_a_model_without_tasks_runs(
    make_engine: MakeEngine,
    engine: Engine,
    tiny_config: ModelConfig,
    tiny_weights: Weights,
    texts: list[list[int]],
) -> None:
    config = replace(tiny_config, tasks=())
    weights = {
        name: array[:0] if name.endswith(("lora_a", "lora_b")) else array
        for name, array in tiny_weights.items()
    }
    bare = make_batch(texts, [-1] * len(texts))
    np.testing.assert_allclose(
        make_engine(config, weights).hidden(bare), engine.hidden(bare), atol=1e-5
    )


def test_one_span_per_text_is_the_mean_of_its_tokens(engine: Engine, batch: Batch) -> None:
    means = engine.pool(batch, batch.starts, batch.ends)
    for mean, states in zip(means, split(engine, batch), strict=True):
        np.testing.assert_allclose(mean, states.mean(0), atol=1e-5)


def test_chunks_of_a_text_average_to_the_text(engine: Engine, texts: list[list[int]]) -> None:
    batch = make_batch([texts[5]], [0])
    cuts = np.int32([0, 7, 20, 41])
    chunks = engine.pool(batch, cuts[:-1], cuts[1:])
    whole = engine.pool(batch, batch.starts, batch.ends)[0]
    np.testing.assert_allclose(np.diff(cuts) @ chunks / 41, whole, atol=1e-5)


def test_chunks_know_their_context(engine: Engine, texts: list[list[int]]) -> None:
    batch = make_batch([texts[5]], [0])
    chunk = engine.pool(batch, np.int32([7]), np.int32([20]))
    alone = make_batch([texts[5][7:20]], [0])
    assert np.abs(chunk - engine.pool(alone, alone.starts, alone.ends)).max() > 0.01


def test_the_rotary_base_of_one_engine_leaves_another_alone(
    make_engine: MakeEngine, tiny_config: ModelConfig, tiny_weights: Weights, batch: Batch
) -> None:
    other_config = replace(tiny_config, rope_base=10_000.0)
    one, other = make_engine(tiny_config, tiny_weights), make_engine(other_config, tiny_weights)
    before = one.hidden(batch)
    assert np.abs(other.hidden(batch) - before).max() > 1e-3
    np.testing.assert_array_equal(one.hidden(batch), before)
    other.rope_base = tiny_config.rope_base
    np.testing.assert_array_equal(other.hidden(batch), before)


def test_a_nan_stays_in_its_own_text(
    make_engine: MakeEngine, tiny_config: ModelConfig, tiny_weights: Weights
) -> None:
    poisoned = dict(tiny_weights)
    name = "embeddings.word.weight"
    poisoned[name] = poisoned[name].copy()
    poisoned[name][50] = np.nan
    batch = make_batch([[0, 9, 2], [0, 50, 8, 7, 2], [0, 6, 5, 4, 2]], [0, 1, -1])
    states = split(make_engine(tiny_config, poisoned), batch)
    assert [bool(np.isfinite(rows).all()) for rows in states] == [True, False, True]


def test_the_engines_agree(tiny_config: ModelConfig, tiny_weights: Weights, batch: Batch) -> None:
    one = OpenVINOEngine(tiny_config, tiny_weights, num_threads=1)
    other = TorchEngine(tiny_config, tiny_weights)
    a, b = (engine.pool(batch, batch.starts, batch.ends) for engine in (one, other))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    # The CPU may compute in bf16 here.
    assert cosines.min() >= 0.999
    exact = OpenVINOEngine(tiny_config, tiny_weights, num_threads=1, precision="float32")
    np.testing.assert_allclose(exact.hidden(batch), other.hidden(batch), atol=1e-5)


@pytest.mark.parametrize("prepack", [False, True])
def test_memory_does_not_grow_with_the_square_of_a_text(
    tiny_config: ModelConfig, tiny_weights: Weights, prepack: bool
) -> None:
    """The compiled graph stores no matrix of scores of every token for every token."""
    length = 1_000
    engine = OpenVINOEngine(tiny_config, tiny_weights, precision="float32", prepack=prepack)
    engine.hidden(make_batch([[5] * length], [0]))
    for node in compiled_nodes(engine):
        for output in node.outputs():
            assert np.prod(output.shape) < length * length


@pytest.mark.parametrize("prepack", [False, True])
def test_rotating_is_one_operation(
    tiny_config: ModelConfig, tiny_weights: Weights, prepack: bool
) -> None:
    engine = OpenVINOEngine(tiny_config, tiny_weights, precision="float32", prepack=prepack)
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled_nodes(engine)]
    assert kinds.count("RoPE") == 2 * tiny_config.num_layers


def compiled_nodes(engine: OpenVINOEngine) -> list[ov.Node]:
    """The nodes of an engine's graphs after the plugin compiled them."""
    models = [request.get_compiled_model().get_runtime_model() for request, _ in engine._steps]
    return [node for model in models for node in model.get_ops()]


def test_int8_weights_give_the_states_of_their_floats(
    make_engine: MakeEngine,
    tiny_config: ModelConfig,
    tiny_weights: Weights,
    batch: Batch,
    tmp_path: Path,
) -> None:
    save_compact(tmp_path / "small", tiny_config, tiny_weights)
    config, weights = load_checkpoint(tmp_path / "small")
    floats = {
        name: weight if isinstance(weight, np.ndarray) else weight.to_float()
        for name, weight in weights.items()
    }
    assert any(not isinstance(weight, np.ndarray) for weight in weights.values())
    np.testing.assert_allclose(
        make_engine(config, weights).hidden(batch),
        make_engine(config, floats).hidden(batch),
        atol=1e-4,
    )


def test_a_cache_changes_no_bit_and_a_folder_that_cannot_be_written_is_ignored(
    tiny_config: ModelConfig, tiny_weights: Weights, batch: Batch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    plain = OpenVINOEngine(tiny_config, tiny_weights, num_threads=1)
    for folder in (tmp_path / "cache", tmp_path / "cache", tmp_path / "file" / "cache"):
        cached = OpenVINOEngine(tiny_config, tiny_weights, num_threads=1, cache_dir=folder)
        np.testing.assert_array_equal(cached.hidden(batch), plain.hidden(batch))
    assert any((tmp_path / "cache").iterdir())


def test_batches_from_many_threads_do_not_mix(engine: Engine, texts: list[list[int]]) -> None:
    batches = [
        make_batch([text], [adapter_id])
        for text, adapter_id in zip(texts, ADAPTER_IDS, strict=True)
    ]
    alone = [engine.hidden(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(engine.hidden, batches * 10)):
            np.testing.assert_allclose(found, alone[i % len(batches)], atol=1e-5)
