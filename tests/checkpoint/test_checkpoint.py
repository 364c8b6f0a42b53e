"""Checkpoints: round trips, and everything a broken or hostile model folder can do (F25-F31)."""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polyvec.checkpoint import (
    Int8Matrix,
    Weights,
    load_checkpoint,
    quantise_rows,
    release_pages,
    save_checkpoint,
    save_compact,
    weight_shapes,
)
from polyvec.checkpoint.storage import read_tensors, write_tensors
from polyvec.config import ModelConfig
from polyvec.tasks import TASKS, Task

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


# Round trips


def test_the_released_model_has_its_published_number_of_parameters():
    shapes = weight_shapes(ModelConfig())
    assert sum(math.prod(shape) for shape in shapes.values()) == 572_310_396
    base = [shape for name, shape in shapes.items() if "lora" not in name]
    assert sum(math.prod(shape) for shape in base) == 559_364_096


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("mlm", [True, False])
def test_a_checkpoint_reads_back_to_the_bit(tmp_path: Path, pooler: bool, mlm: bool):
    weights = random_weights(pooler=pooler, mlm=mlm)
    save_checkpoint(tmp_path / "m", CONFIG, weights)
    config, again = load_checkpoint(tmp_path / "m")
    assert config == CONFIG
    if not pooler and not mlm:
        # transformers needs a pooler, so zeros were written.
        weights |= {n: np.zeros(s) for n, s in weight_shapes(CONFIG).items() if "pooler" in n}
    assert_equal(again, weights)


def test_a_checkpoint_survives_being_saved_over_itself(model: Path):
    config, weights = load_checkpoint(model)
    # The weights are views of the very files that are replaced.
    save_checkpoint(model, config, weights)
    assert_equal(load_checkpoint(model)[1], random_weights())
    assert_equal(weights, random_weights())


def test_bfloat16_is_kept_as_it_is_stored(tmp_path: Path):
    save_checkpoint(tmp_path / "m", CONFIG, random_weights(), dtype="bfloat16")
    _, weights = load_checkpoint(tmp_path / "m")
    for name, weight in random_weights().items():
        again = weights[name]
        assert isinstance(weight, np.ndarray) and isinstance(again, np.ndarray)
        assert again.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(again, weight.astype(ml_dtypes.bfloat16))


def test_tensors_are_read_only_views_that_survive_forgetting(model: Path):
    weights = load_checkpoint(model)[1]
    table = weights["embeddings.word.weight"]
    assert isinstance(table, np.ndarray)
    assert not table.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        table[:] = 7
    release_pages([*weights.values(), np.ones(3)])
    assert_equal(weights, random_weights())


def test_loading_does_not_read_the_tensors_into_memory(tmp_path: Path):
    config = ModelConfig(
        vocab_size=200_000, width=64, num_layers=1, num_heads=2, tasks=(), dims=(64,)
    )
    save_checkpoint(tmp_path / "m", config, random_weights(config))
    code = (
        "import resource, sys; from pathlib import Path; from polyvec.checkpoint import *\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); model = load_checkpoint(Path(sys.argv[1])); print(peak() - before)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "m")]
    grown = int(subprocess.run(run, capture_output=True, check=True, text=True).stdout)
    assert (tmp_path / "m/model.safetensors").stat().st_size > 50_000_000
    assert grown < 10_000, f"{grown} kB"


def test_adapters_of_any_name_and_number_are_kept(tmp_path: Path):
    tasks = (*TASKS, Task("legal.de", "Finde Urteile: "), Task("my_own"))
    config = ModelConfig(**{**_fields(CONFIG), "tasks": tasks})
    save_checkpoint(tmp_path / "m", config, random_weights(config))
    assert (tmp_path / "m" / "legal_de" / "adapter_config.json").exists()
    again, weights = load_checkpoint(tmp_path / "m")
    assert again == config
    assert_equal(weights, random_weights(config))


def _fields(config: ModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_an_adapter_folder_put_beside_the_others_becomes_a_task(model: Path):
    (model / "separation").rename(model / "mine")
    edit_json(model / "config.json", lora_adaptations=["classification"])
    names = [task.name for task in load_checkpoint(model)[0].tasks]
    five = [task.name for task in TASKS if task.name not in ("separation", "classification")]
    assert names == ["classification", *five, "mine"]


def test_an_adapter_that_adapts_nothing_is_the_bare_encoder(model: Path):
    for task in ("retrieval_query", "retrieval_passage", "classification", "text_matching"):
        shutil.rmtree(model / task)
    (model / "separation").rename(model / "my-own")
    edit_json(model / "config.json", lora_adaptations=[])
    edit_json(model / "my-own" / "adapter_config.json", target_modules=["nothing"])
    edit_tensors(model / "my-own" / "adapter_model.safetensors", lambda tensors: tensors.clear())
    config, weights = load_checkpoint(model)
    assert config.tasks == (Task("my-own"),)
    banks = [weight for name, weight in weights.items() if "lora" in name]
    assert all(isinstance(bank, np.ndarray) and not bank.any() for bank in banks)


def test_files_travel_with_the_weights(tmp_path: Path):
    save_checkpoint(tmp_path / "m", CONFIG, random_weights(), files={"README.md": b"# A model"})
    assert (tmp_path / "m" / "README.md").read_bytes() == b"# A model"
    for name in ("config.json", "../escape", "separation", ".hidden", "a/b", ""):
        with pytest.raises(ValueError, match="files"):
            save_checkpoint(tmp_path / "n", CONFIG, random_weights(), files={name: b""})


# Heads beyond the original

HEADED = replace(CONFIG, sparse_head=True, multi_vector_dim=5)


def test_heads_are_kept_in_a_file_of_their_own(tmp_path: Path):
    weights = random_weights(HEADED)
    save_checkpoint(tmp_path / "m", HEADED, weights)
    names = {"sparse.weight", "sparse.bias", "multi.weight", "multi.bias"}
    assert set(load_file(tmp_path / "m" / "heads.safetensors")) == names
    config, again = load_checkpoint(tmp_path / "m")
    assert config == HEADED
    assert_equal(again, weights)
    # Saved without them, the folder keeps no trace.
    save_checkpoint(tmp_path / "m", CONFIG, random_weights())
    assert not (tmp_path / "m" / "heads.safetensors").exists()
    assert "multi_dim" not in json.loads((tmp_path / "m" / "config.json").read_text())


def test_the_compact_layout_holds_heads_in_bfloat16(tmp_path: Path):
    weights = random_weights(HEADED, pooler=False)
    save_compact(tmp_path / "m", HEADED, weights)
    assert not (tmp_path / "m" / "heads.safetensors").exists()
    config, again = load_checkpoint(tmp_path / "m")
    assert config == HEADED
    for name in ("sparse.weight", "sparse.bias", "multi_vector.weight", "multi_vector.bias"):
        expected = np.asarray(weights[name]).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(again[name]), expected)


@pytest.mark.parametrize("head", ["sparse", "multi"])
def test_either_head_may_come_alone(tmp_path: Path, head: str):
    config = replace(
        HEADED, **({"multi_vector_dim": 0} if head == "sparse" else {"sparse_head": False})
    )
    save_checkpoint(tmp_path / "m", config, random_weights(config))
    assert load_checkpoint(tmp_path / "m")[0] == config
    assert {name.split(".")[0] for name in load_file(tmp_path / "m/heads.safetensors")} == {head}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors: tensors.pop("multi.bias"), r"lacks tensor 'multi\.bias'"),
        (lambda tensors: tensors.update({"multi.extra": np.zeros(2)}), r"no place.*'multi\.extra'"),
        (
            lambda tensors: tensors.update({"sparse.weight": np.zeros((2, 16), np.float32)}),
            r"'sparse\.weight' is \[2, 16\], must be \[1, 16\]",
        ),
        (
            lambda tensors: tensors.update({"emb_ln.bias": np.zeros(16)}),
            "'emb_ln.bias' is there twice",
        ),
    ],
)
def test_every_tensor_of_the_heads_is_accounted_for(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], complaint: str
):
    save_checkpoint(tmp_path / "m", HEADED, random_weights(HEADED))

    def narrow(tensors: dict[str, np.ndarray]) -> None:
        change(tensors)
        tensors.update({name: array.astype(np.float32) for name, array in tensors.items()})

    edit_tensors(tmp_path / "m/heads.safetensors", narrow)
    with pytest.raises(ValueError, match=complaint):
        load_checkpoint(tmp_path / "m")


def test_heads_and_config_must_agree(tmp_path: Path):
    save_checkpoint(tmp_path / "m", HEADED, random_weights(HEADED))
    edit_json(tmp_path / "m/config.json", multi_dim=6)
    with pytest.raises(ValueError, match=r"'multi\.weight' is \[5, 16\], must be \[6, 16\]"):
        load_checkpoint(tmp_path / "m")
    edit_json(tmp_path / "m/config.json", multi_dim=0)
    with pytest.raises(ValueError, match=r"heads\.safetensors has a tensor.*'multi\.bias'"):
        load_checkpoint(tmp_path / "m")
    for wrong in ({"sparse_head": 1}, {"multi_dim": -1}, {"multi_dim": True}, {"multi_dim": "5"}):
        edit_json(tmp_path / "m/config.json", **wrong)
        with pytest.raises(ValueError, match=r"config\.json: config: "):
            load_checkpoint(tmp_path / "m")
        edit_json(tmp_path / "m/config.json", sparse_head=True, multi_dim=5)
    (tmp_path / "m/heads.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks tensor 'sparse\.weight'"):
        load_checkpoint(tmp_path / "m")
    lacking = random_weights(CONFIG)
    with pytest.raises(ValueError, match=r"weights lack 'sparse\.weight'"):
        save_checkpoint(tmp_path / "n", HEADED, lacking)
    with pytest.raises(ValueError, match=r"weights have 'sparse\.weight'"):
        save_checkpoint(tmp_path / "n", CONFIG, random_weights(HEADED))


# The compact layout


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


def test_a_compact_model_saves_to_itself_and_to_the_native_layout(tmp_path: Path):
    save_compact(tmp_path / "a", CONFIG, random_weights())
    config, weights = load_checkpoint(tmp_path / "a")
    save_compact(tmp_path / "b", config, weights)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    save_checkpoint(tmp_path / "c", config, weights)
    wide = load_checkpoint(tmp_path / "c")[1]
    for name, weight in weights.items():
        expected = weight.to_float() if isinstance(weight, Int8Matrix) else weight
        np.testing.assert_array_equal(wide[name], expected.astype(np.float32))


def test_rows_of_zeros_and_of_one_sign_are_quantised():
    matrix = np.array([[0, 0, 0], [1, 2, 127], [-254, 0, 2]], np.float32)
    int8 = quantise_rows(matrix)
    np.testing.assert_array_equal(int8.values, [[0, 0, 0], [1, 2, 127], [-127, 0, 1]])
    np.testing.assert_array_equal(int8.to_float(), matrix)


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


# F25: damaged tensor files


def test_a_file_cut_anywhere_is_refused(model: Path):
    path = model / "model.safetensors"
    raw = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 500, *range(1000, len(raw), 997), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_checkpoint(model)
    path.write_bytes(raw + b"\0")
    with pytest.raises(ValueError, match="belong to no tensor"):
        load_checkpoint(model)


def test_a_flipped_bit_in_the_header_is_refused_or_changes_nothing(tmp_path: Path):
    config = ModelConfig(**{**_fields(CONFIG), "num_layers": 1, "tasks": ()})
    save_checkpoint(tmp_path / "m", config, random_weights(config))
    path = tmp_path / "m" / "model.safetensors"
    raw = path.read_bytes()
    bits = range(0, 8 * (8 + int.from_bytes(raw[:8], "little")), 61)
    refused = 0
    for bit in bits:
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            _, weights = load_checkpoint(tmp_path / "m")
        except ValueError as error:
            assert str(tmp_path) in str(error)
            refused += 1
        else:
            # The bit was in the metadata or in a space.
            assert_equal(weights, random_weights(config))
    assert refused > 0.9 * len(bits)


STRANGE_HEADERS = {
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "no entry": b'{"a": 1}',
    "no shape": b'{"a": {"dtype": "F32"}}',
    "dtype": b'{"a": {"dtype": 4, "shape": [1], "data_offsets": [0, 4]}}',
    "sign": b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
    "float": b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
    "infinite": b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
    "one offset": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
    "twice": b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "a": {}}',
    "not UTF-8": b'{"a": "' + b"\xff" * 9 + b'"}',
    "many digits": b'{"a": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("header", STRANGE_HEADERS.values(), ids=STRANGE_HEADERS.keys())
def test_a_strange_header_is_refused(model: Path, header: bytes):
    (model / "model.safetensors").write_bytes(join(header, b"\0" * 4))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_checkpoint(model)


def test_a_huge_header_is_refused_before_it_is_read(model: Path):
    path = model / "model.safetensors"
    for length in (2**63, 2**40, 17 * 2**20):
        with path.open("wb") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(2**25)
        with pytest.raises(ValueError, match="announces a header"):
            load_checkpoint(model)


def test_overlapping_tensors_and_gaps_are_refused(model: Path):
    path = model / "model.safetensors"
    header, data = split(path.read_bytes())
    one, two = "encoder.layers.0.norm1.bias", "encoder.layers.0.norm2.bias"
    path.write_bytes(join(header | {one: header[two]}, data))
    with pytest.raises(ValueError, match="overlaps its neighbour or leaves a gap"):
        load_checkpoint(model)
    shifted = {
        name: entry | {"data_offsets": [x + 4 for x in entry["data_offsets"]]}
        for name, entry in header.items()
        if name != "__metadata__"
    }
    path.write_bytes(join(shifted, b"\0" * 4 + data))
    with pytest.raises(ValueError, match="leaves a gap"):
        load_checkpoint(model)


def test_tensors_at_odd_addresses_are_read(model: Path):
    path = model / "model.safetensors"
    header, data = split(path.read_bytes())
    raw = json.dumps(header).encode()
    path.write_bytes(join(raw + b" " * (1 + -len(raw) % 8), data))
    _, weights = load_checkpoint(model)
    assert_equal(weights, random_weights())
    assert all(
        weight.flags.aligned for weight in weights.values() if isinstance(weight, np.ndarray)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FC1), f"lacks tensor '{FC1}'"),
        (lambda t: t.update(extra=np.zeros(1, "f")), "no place in the model: 'extra'"),
        (lambda t: t.update({FC1: t[FC1].T.copy()}), rf"'{FC1}' is \[16, 24\], must be \[24, 16\]"),
        (lambda t: t.update({FC1: t[FC1].astype("d")}), f"'{FC1}' has dtype 'F64'"),
        (lambda t: t.update({FC1: t[FC1].astype(np.int8)}), f"8-bit tensor '{FC1}'"),
        (lambda t: t.update({f"roberta.{FC1}": t[FC1]}), f"'{FC1}' is there twice"),
        (lambda t: t.update({"layers.1.mlp.fc1.weight": t[FC1]}), "no place in the model"),
    ],
    ids=["missing", "extra", "shape", "dtype", "int8", "prefix twice", "name twice"],
)
def test_a_wrong_tensor_is_named(model: Path, change: Callable[[Any], object], message: str):
    edit_tensors(model / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model)


# F26: paths that lead elsewhere


def _shard(model: Path) -> dict[str, Any]:
    """Make the model one of two shards; return the index."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == file}, model / file)
    index = {"weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_read(model: Path):
    _shard(model)
    assert_equal(load_checkpoint(model)[1], random_weights())


@pytest.mark.parametrize(
    "name",
    ["../model-1.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", ".x", "a\\b", "x\0y"],
)
def test_an_index_cannot_name_a_file_elsewhere(model: Path, name: str):
    index = _shard(model)
    (model.parent / "model-1.safetensors").write_bytes((model / "model-1.safetensors").read_bytes())
    places = {k: name if v == "model-1.safetensors" else v for k, v in index["weight_map"].items()}
    edit_json(model / "model.safetensors.index.json", weight_map=places)
    with pytest.raises(ValueError, match="is not a plain name"):
        load_checkpoint(model)


def test_an_index_must_agree_with_its_shards(model: Path):
    index = _shard(model)
    path = model / "model.safetensors.index.json"
    places = dict(index["weight_map"])
    path.write_text(json.dumps({"weight_map": places | {"ghost": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match="lacks tensor 'ghost'"):
        load_checkpoint(model)
    path.write_text(json.dumps({"weight_map": {k: v for k, v in places.items() if k != FC1}}))
    with pytest.raises(ValueError, match=f"has tensor '{FC1}'"):
        load_checkpoint(model)
    path.write_text(json.dumps({"weight_map": places | {FC1: "model-3.safetensors"}}))
    with pytest.raises(ValueError, match=f"has tensor '{FC1}'"):
        load_checkpoint(model)
    path.write_text(json.dumps({"weight_map": places | {"ghost": "model-3.safetensors"}}))
    with pytest.raises(ValueError, match=r"names 'model-3\.safetensors'"):
        load_checkpoint(model)
    for wrong in ([], None, {"a": 1}):
        path.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match="weight_map"):
            load_checkpoint(model)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "separation/adapter_model.safetensors"]
)
def test_a_link_cannot_lead_out_of_the_folder(model: Path, name: str):
    outside = model.parent / "outside"
    (model / name).rename(outside)
    (model / name).symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of its folder"):
        load_checkpoint(model)


def test_an_adapter_folder_cannot_be_a_link_elsewhere(model: Path):
    (model / "separation").rename(model.parent / "outside")
    (model / "separation").symlink_to(model.parent / "outside")
    with pytest.raises(ValueError, match="leads out of its folder"):
        load_checkpoint(model)


def test_a_hub_cache_s_links_into_its_blobs_are_followed(model: Path, tmp_path: Path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(p for p in model.rglob("*") if p.is_file()):
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        link.symlink_to(blobs / str(number))
    assert_equal(load_checkpoint(snapshot)[1], random_weights())


def test_what_is_not_a_regular_file_is_refused(model: Path):
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    with pytest.raises(ValueError, match="not a regular file"):
        load_checkpoint(model)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/b", "", "..", "ü"])
def test_a_task_s_name_cannot_lead_out_of_the_folder(model: Path, tmp_path: Path, name: str):
    (model / "separation").rename(model.parent / "outside")
    edit_json(model / "config.json", lora_adaptations=[name], task_instructions={name: ""})
    with pytest.raises(ValueError, match="is not a plain name"):
        load_checkpoint(model)
    config = ModelConfig(**{**_fields(CONFIG), "tasks": (Task(name),)})
    for save in (save_checkpoint, save_compact):
        with pytest.raises(ValueError, match="is not a plain name"):
            save(tmp_path / "new", config, random_weights(config))


def test_two_tasks_cannot_share_a_folder(tmp_path: Path):
    config = ModelConfig(**{**_fields(CONFIG), "tasks": (Task("a.b"), Task("a-b"))})
    with pytest.raises(ValueError, match="share a folder"):
        save_checkpoint(tmp_path / "m", config, random_weights(config))


# F27: code and pickles


def test_code_and_pickles_beside_the_weights_are_never_touched(model: Path, tmp_path: Path):
    trace = tmp_path / "trace"
    evil = f"open({str(trace)!r}, 'w')"
    for name in ("modeling_lora.py", "custom_st.py", "__init__.py", "setup.py"):
        (model / name).write_text(evil)
    pickle = b"cbuiltins\nexec\n(V" + evil.encode() + b"\ntR."
    for name in ("pytorch_model.bin", "adapter_model.bin", "separation/adapter_model.bin"):
        (model / name).write_bytes(pickle)
    (model / "modules.json").write_text('[{"type": "custom_st.Transformer", "path": ""}]')
    edit_json(model / "config.json", auto_map={"AutoModel": "modeling_lora.XLMRobertaLoRA"})
    assert_equal(load_checkpoint(model)[1], random_weights())
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors; safetensors is the only format"):
        load_checkpoint(model)
    assert not trace.exists()


def test_an_adapter_with_only_a_pickle_is_refused(model: Path):
    (model / "separation" / "adapter_model.safetensors").rename(
        model / "separation" / "adapter_model.bin"
    )
    with pytest.raises(ValueError, match=r"separation has no adapter_model\.safetensors"):
        load_checkpoint(model)


# F28: configs


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**10},
        {"vocab_size": -1},
        {"intermediate_size": 1e3},
        {"max_position_embeddings": 10**9},
        {"lora_rank": 10**6},
        {"num_attention_heads": 0},
        {"num_hidden_layers": "2"},
        {"model_type": "bert"},
    ],
    ids=str,
)
def test_an_absurd_config_is_refused_by_name(model: Path, changes: dict[str, object]):
    edit_json(model / "config.json", **changes)
    with pytest.raises(ValueError, match=r"config\.json: config: "):
        load_checkpoint(model)


def test_a_config_larger_than_its_tensors_is_refused(model: Path):
    edit_json(model / "config.json", vocab_size=2_000_000)
    with pytest.raises(ValueError, match=r"word_embeddings.* must be .*2000000"):
        load_checkpoint(model)


def test_a_folder_that_is_no_model_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match="no model folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_checkpoint(tmp_path)
    for text in ("", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            load_checkpoint(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(ValueError, match="more than"):
        load_checkpoint(tmp_path)


# F29: adapters that do not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 4}, r"\[3, 30\].*\(r is 4\)|must be .*\(r is 4\)"),
        ({"r": 0}, "r is 0"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": "3"}, "r is '3'"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"next_years_variant": {"a": 1}}, "next_years_variant"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"rank_pattern": {"fc1": 8}}, "rank_pattern"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save"),
        ({"target_modules": "(a+)+b"}, "target_modules must be a list"),
        ({"target_modules": ["fc1"]}, "no place in the model"),
    ],
    ids=str,
)
def test_an_adapter_s_settings_must_fit(model: Path, changes: dict[str, object], message: str):
    edit_json(model / "separation" / "adapter_config.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(model)
    assert "separation" in str(caught.value)


KEY = "base_model.model.layers.1.mlp.fc1.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), r"lacks tensor 'layers\.1\.mlp\.fc1\.lora_A\.weight'"),
        (lambda t: t.update(extra=t[KEY]), "no place in the model: 'extra'"),
        (lambda t: t.update({KEY: t[KEY][:2].copy()}), r"\[2, 16\], must be .*\[3, 16\]"),
        (lambda t: t.update({KEY: t[KEY].astype(np.int8)}), "is int8"),
        (lambda t: t.update({KEY[17:]: t[KEY]}), "is there twice"),
    ],
    ids=["missing", "extra", "rank", "dtype", "twice"],
)
def test_a_wrong_adapter_tensor_is_named(
    model: Path, change: Callable[[Any], object], message: str
):
    edit_tensors(model / "classification" / "adapter_model.safetensors", change)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(model)
    assert "classification" in str(caught.value)


def test_an_adapter_that_has_no_folder_of_its_own_is_refused(model: Path):
    for path in (model / "separation").iterdir():
        path.rename(model / path.name)
    with pytest.raises(ValueError, match=r"adapter_config\.json belongs in a folder"):
        load_checkpoint(model)


def test_a_missing_adapter_is_named(model: Path):
    (model / "separation" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"separation has no adapter_config\.json"):
        load_checkpoint(model)


# F30: saving where one cannot


def test_a_wrong_weight_is_not_saved(tmp_path: Path):
    weights = random_weights()
    name = "layers.0.up.weight"
    for broken in (
        {k: v for k, v in weights.items() if k != name},
        {**weights, name: np.zeros((2, 2), np.float32)},
        {**weights, "layers.0.up.weights": np.zeros(1, np.float32)},
    ):
        for save in (save_checkpoint, save_compact):
            with pytest.raises(ValueError, match=r"layers\.0\.up\.weight"):
                save(tmp_path / "m", CONFIG, broken)
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Files cannot grow beyond `num_bytes`: as near to a full disk as a test can get."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("num_bytes", [0, 100, 5_000, 20_000])
@pytest.mark.parametrize("save", [save_checkpoint, save_compact])
def test_a_full_disk_leaves_the_old_checkpoint_whole(
    model: Path, save: Callable[..., None], num_bytes: int
):
    with full_disk(num_bytes), pytest.raises(OSError):
        save(model, CONFIG, random_weights(seed=1))
    assert_equal(load_checkpoint(model)[1], random_weights())
    assert [path.name for path in model.parent.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that is read-only for root too")
def test_a_read_only_disk_is_an_oserror():
    with pytest.raises(OSError, match="proc"):
        save_checkpoint(Path("/proc/polyvec"), CONFIG, random_weights())


def test_a_rename_that_fails_brings_the_old_checkpoint_back(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    rename = Path.rename

    def fail_into_place(self: Path, target: Path) -> Path:
        if target == model and not self.name.endswith(".old"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(OSError, match="no"):
        save_checkpoint(model, CONFIG, random_weights(seed=1))
    assert_equal(load_checkpoint(model)[1], random_weights())
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_only_a_checkpoint_is_ever_replaced(model: Path, tmp_path: Path):
    save_checkpoint(model, CONFIG, random_weights(), files={"README.md": b"x"})
    save_checkpoint(model, CONFIG, random_weights())
    for name in ("notes.txt", "train.py", "data"):
        (model / name).mkdir() if name == "data" else (model / name).write_text("precious")
        with pytest.raises(ValueError, match=f"holds '{name}'"):
            save_checkpoint(model, CONFIG, random_weights())
        assert (model / name).exists()
        (model / name).rmdir() if name == "data" else (model / name).unlink()
    other = tmp_path / "other"
    other.mkdir()
    save_checkpoint(other, CONFIG, random_weights())
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="holds 'file'"):
        save_checkpoint(tmp_path / "file", CONFIG, random_weights())


# F31


def test_nothing_relies_on_asserts(model: Path, tmp_path: Path):
    """A few of the attacks above, in an interpreter that skips assert statements."""
    raw = (model / "model.safetensors").read_bytes()
    header, data = split(raw)
    gap = join({name: entry for name, entry in header.items() if name != FC1}, data)
    name = {"lora_adaptations": ["../x"], "task_instructions": {"../x": ""}}
    attacks: list[tuple[str, bytes, dict[str, object]]] = [
        ("cut short", raw[:-4], {}),
        ("leaves a gap", gap, {}),
        ("announces a header", (2**62).to_bytes(8, "little"), {}),
        ("is not a plain name", raw, name),
        ("width is 1000000000", raw, {"hidden_size": 10**9}),
    ]
    for number, (_, content, changes) in enumerate(attacks):
        folder = tmp_path / str(number)
        shutil.copytree(model, folder)
        (folder / "model.safetensors").write_bytes(content)
        edit_json(folder / "config.json", **changes)
    code = """
import sys
from pathlib import Path
from polyvec.checkpoint import load_checkpoint
for folder in sys.argv[1:]:
    try:
        load_checkpoint(Path(folder))
    except ValueError as error:
        sys.stdout.write(f"{error}\\n")
"""
    folders = [str(tmp_path / str(number)) for number in range(len(attacks))]
    run = [sys.executable, "-O", "-c", code, *folders]
    lines = subprocess.run(run, capture_output=True, check=True, text=True).stdout.splitlines()
    for (problem, _, _), line in zip(attacks, lines, strict=True):
        assert problem in line
