"""Loading: layouts, shards, and everything a broken or hostile model folder can contain."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polyvec.checkpoint import load_checkpoint, save_checkpoint
from polyvec.config import ModelConfig
from tests.checkpoint.conftest import (
    CONFIG,
    FC1,
    HEADED,
    assert_equal,
    edit_json,
    edit_tensors,
    join,
    random_weights,
    split,
)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FC1), f"lacks tensor '{FC1}'"),
        (lambda t: t.update(extra=np.zeros(1, "f")), "no place in the model: 'extra'"),
        (lambda t: t.update({FC1: t[FC1].T.copy()}), rf"'{FC1}' is \[16, 24\], must be \[24, 16\]"),
        (lambda t: t.update({FC1: t[FC1].astype("d")}), f"'{FC1}' has dtype 'F64'"),
        (lambda t: t.update({FC1: t[FC1].astype(np.int8)}), f"8-bit tensor '{FC1}'"),
        (lambda t: t.update({f"roberta.{FC1}": t[FC1]}), f"'{FC1}' occurs twice"),
        (lambda t: t.update({"layers.1.mlp.fc1.weight": t[FC1]}), "no place in the model"),
    ],
    ids=["missing", "extra", "shape", "dtype", "int8", "prefix twice", "name twice"],
)
def test_a_wrong_tensor_is_named(model: Path, change: Callable[[Any], object], message: str):
    edit_tensors(model / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model)


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
            "'emb_ln.bias' occurs twice",
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
    lacking = random_weights(CONFIG)
    with pytest.raises(ValueError, match=r"weights lack 'sparse\.weight'"):
        save_checkpoint(tmp_path / "n", HEADED, lacking)
    with pytest.raises(ValueError, match=r"weights have 'sparse\.weight'"):
        save_checkpoint(tmp_path / "n", CONFIG, random_weights(HEADED))


def test_heads_without_a_file_are_absent_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save_checkpoint(tmp_path / "m", HEADED, random_weights(HEADED))
    (tmp_path / "m/heads.safetensors").unlink()
    config, weights = load_checkpoint(tmp_path / "m")
    assert (config.sparse_head, config.multi_vector_dim) == (False, 0)
    assert not [name for name in weights if name.startswith(("sparse.", "multi_vector."))]
    assert "has no heads.safetensors" in caplog.text


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


def test_a_folder_that_is_not_a_model_is_refused_with_the_reason(tmp_path: Path):
    with pytest.raises(ValueError, match="no model folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_checkpoint(tmp_path)
    for text in ("", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            load_checkpoint(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(ValueError, match="more than"):
        load_checkpoint(tmp_path)


def test_nothing_relies_on_asserts(model: Path, tmp_path: Path):
    """Some of these attacks, in an interpreter that skips assert statements."""
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
