"""Quantised matrices, in memory and in the compact layout."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from polyvec.checkpoint import (
    Int8Matrix,
    gather_rows,
    load_checkpoint,
    quantise_rows,
    save_compact,
    to_float,
    weight_shapes,
)
from polyvec.checkpoint.quantised import from_tensors, quantise, to_tensors
from polyvec.checkpoint.storage import read_tensors, write_tensors
from tests.checkpoint.conftest import CONFIG, random_weights


def test_the_compact_layout_is_close_and_small(tmp_path: Path):
    save_compact(tmp_path / "m", CONFIG, random_weights(mlm=True))
    config, weights = load_checkpoint(tmp_path / "m")
    assert config == CONFIG
    assert set(weights) == set(weight_shapes(CONFIG, pooler=False))
    for name, weight in random_weights(pooler=False).items():
        again = weights[name]
        assert isinstance(weight, np.ndarray)
        if isinstance(again, Int8Matrix):
            error = np.abs(again.to_float() - weight)
            assert (error <= np.abs(weight).max(1, keepdims=True) / 253).all()
        elif "lora" in name:
            np.testing.assert_array_equal(again, weight.astype(ml_dtypes.bfloat16))
        else:
            np.testing.assert_array_equal(again, weight)
    kinds = {name for name, weight in weights.items() if isinstance(weight, Int8Matrix)}
    assert {"embeddings.word.weight", "layers.1.down.weight"} <= kinds
    assert not any(name.endswith("bias") or "norm" in name or "lora" in name for name in kinds)


def test_rows_of_zeros_and_of_one_sign_are_quantised():
    matrix = np.array([[0, 0, 0], [1, 2, 127], [-254, 0, 2]], np.float32)
    int8 = quantise_rows(matrix)
    np.testing.assert_array_equal(int8.values, [[0, 0, 0], [1, 2, 127], [-127, 0, 1]])
    np.testing.assert_array_equal(int8.to_float(), matrix)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_gathered_rows_are_rows_of_the_matrix_in_float32(dtype: type):
    matrix = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    weight = quantise_rows(matrix) if dtype is np.int8 else matrix.astype(dtype)
    ids = np.int32([8, 0, 0, 3])
    rows = gather_rows(weight, ids)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, to_float(weight)[ids])


def test_a_matrix_is_stored_and_restored_and_quantised_only_once():
    matrix = quantise(np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))
    assert quantise(matrix) is matrix
    tensors = to_tensors("table", matrix)
    plain = np.ones(3)
    assert from_tensors("plain", plain, tensors.get) is plain
    again = from_tensors("table", tensors["table"], tensors.get)
    assert isinstance(again, Int8Matrix)
    np.testing.assert_array_equal(again.to_float(), matrix.to_float())


def test_an_8_bit_tensor_without_its_scales_is_refused(tmp_path: Path):
    save_compact(tmp_path / "m", CONFIG, random_weights())
    path = tmp_path / "m" / "model.safetensors"
    tensors = {name: stored.array.copy() for name, stored in read_tensors(path).items()}
    del tensors["layers.0.up.weight.scales"]
    write_tensors(path, tensors)
    with pytest.raises(ValueError, match=r"layers\.0\.up\.weight.*scale per row"):
        load_checkpoint(tmp_path / "m")


def test_only_matrices_may_be_in_8_bits(tmp_path: Path):
    save_compact(tmp_path / "m", CONFIG, random_weights())
    path, norm = tmp_path / "m" / "model.safetensors", "embeddings.norm.weight"
    tensors = {name: stored.array.copy() for name, stored in read_tensors(path).items()}
    tensors |= {norm: np.ones(16, np.int8), f"{norm}.scales": np.ones(16, np.float32)}
    write_tensors(path, tensors)
    with pytest.raises(ValueError, match=f"'{norm}' may not be in 8 bits"):
        load_checkpoint(tmp_path / "m")
