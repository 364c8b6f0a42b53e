"""Saving: round trips, and disks that are full, read-only or already in use."""

import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from polyvec.checkpoint import (
    Int8Matrix,
    load_checkpoint,
    save_checkpoint,
    save_compact,
    weight_shapes,
)
from tests.checkpoint.conftest import CONFIG, HEADED, assert_equal, random_weights


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("mlm", [True, False])
def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path, pooler: bool, mlm: bool):
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


def test_files_are_written_beside_the_weights(tmp_path: Path):
    save_checkpoint(tmp_path / "m", CONFIG, random_weights(), files={"README.md": b"# A model"})
    assert (tmp_path / "m" / "README.md").read_bytes() == b"# A model"
    for name in ("config.json", "../escape", "separation", ".hidden", "a/b", ""):
        with pytest.raises(ValueError, match="files"):
            save_checkpoint(tmp_path / "n", CONFIG, random_weights(), files={name: b""})


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
def test_a_model_may_have_only_one_of_the_heads(tmp_path: Path, head: str):
    config = replace(
        HEADED, **({"multi_vector_dim": 0} if head == "sparse" else {"sparse_head": False})
    )
    save_checkpoint(tmp_path / "m", config, random_weights(config))
    assert load_checkpoint(tmp_path / "m")[0] == config
    assert {name.split(".")[0] for name in load_file(tmp_path / "m/heads.safetensors")} == {head}


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
    """Files cannot grow beyond `num_bytes`, which is the closest a test can get to a full disk."""
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
