"""A model folder from a stranger: any value of any JSON file may be anything."""

import copy
import json
import random
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polyvec import Encoder
from polyvec.checkpoint import load_checkpoint
from polyvec.config import LIMITS
from polyvec.engines.torch import TorchEngine
from polyvec.tokenizer import Tokenizer
from tests.checkpoint.conftest import edit_json, join, split

ODD = [None, -1, 0, 1e308, 10**12, 10**400, "x", "\ud800", [], {}, True, 0.5, [[0]], {"x": [{}]}]
"""Values that replace each value in turn."""

SAMPLE = 30
"""Changes that are tried of each file."""

MAX_BYTES = 2**24
"""Memory that reading may take. The tiny model has 200 kB."""


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with one adapter."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny_model, folder)
    for other in folder.glob("*/"):
        if other.is_dir() and other.name != "separation":
            shutil.rmtree(other)
    edit_json(
        folder / "config.json",
        lora_adaptations=["separation"],
        task_instructions={"separation": "Part: "},
    )
    return folder


def shard(folder: Path) -> None:
    """Split the model's file into two with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def changes(data: Any) -> Iterator[Any]:
    """Yield copies of JSON data, in each of which one value is odd or missing."""

    def paths(value: Any) -> Iterator[tuple[Any, ...]]:
        keys = range(len(value)) if isinstance(value, list) else value
        if isinstance(value, list | dict):
            for key in keys:
                yield (key,)
                yield from ((key, *rest) for rest in paths(value[key]))

    places = [(path, odd) for path in paths(data) for odd in [*ODD, KeyError]]
    for path, odd in random.Random(17).sample(places, min(SAMPLE, len(places))):
        changed = copy.deepcopy(data)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        if odd is KeyError:
            del parent[path[-1]]
        else:
            parent[path[-1]] = odd
        yield changed
    yield from ODD


def encode(folder: Path) -> np.ndarray:
    config, weights = load_checkpoint(folder)
    tokenizer = Tokenizer.load(folder, config.max_tokens)
    return Encoder(config, tokenizer, TorchEngine(config, weights)).encode("a fox")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "separation/adapter_config.json",
        "model.safetensors",
        "separation/adapter_model.safetensors",
        "model.safetensors.index.json",
    ],
)
def test_any_odd_value_gives_embeddings_or_one_sentence(folder: Path, name: str):
    if name == "model.safetensors.index.json":
        shard(folder)
    path = folder / name
    header, tensors = split(path.read_bytes()) if path.suffix == ".safetensors" else (None, b"")
    encode(folder)
    refused = 0
    for changed in changes(header or json.loads(path.read_text())):
        path.write_bytes(join(changed, tensors) if header else json.dumps(changed).encode())
        try:
            vectors = encode(folder)
        except ValueError as error:
            assert path.name in str(error), (changed, error)
            # The types that are checked during tests make a message longer.
            assert len(str(error)) < 3_000
            refused += 1
        else:
            assert np.isfinite(vectors).all()
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "field", "limit"),
    [
        ("config.json", "vocab_size", "vocab_size"),
        ("config.json", "hidden_size", "width"),
        ("config.json", "intermediate_size", "ffn_width"),
        ("config.json", "multi_dim", "width"),
        ("separation/adapter_config.json", "r", "adapter_rank"),
    ],
)
def test_sizes_are_compared_with_the_tensors_before_memory_is_taken(
    folder: Path, name: str, field: str, limit: str
):
    edit_json(folder / name, **{field: LIMITS[limit]})
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=str(folder)):
            load_checkpoint(folder)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
