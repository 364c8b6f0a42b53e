"""A tiny model folder to break, and tools to break it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polyvec.checkpoint import Weights, save_checkpoint, weight_shapes
from polyvec.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=30,
    width=16,
    num_layers=2,
    num_heads=2,
    ffn_width=24,
    max_tokens=64,
    adapter_rank=3,
    dims=(8, 16),
)

HEADED = replace(CONFIG, sparse_head=True, multi_vector_dim=5)

FC1 = "encoder.layers.1.mlp.fc1.weight"


def random_weights(
    config: ModelConfig = CONFIG, *, pooler: bool = True, mlm: bool = False, seed: int = 0
) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = weight_shapes(config, pooler=pooler, mlm=mlm)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def assert_equal(left: Weights, right: Weights) -> None:
    assert set(left) == set(right)
    for name, weight in left.items():
        np.testing.assert_array_equal(weight, right[name], err_msg=name)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder in the native layout, with five adapters."""
    save_checkpoint(tmp_path / "model", CONFIG, random_weights())
    return tmp_path / "model"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and data."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def join(header: object, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data
