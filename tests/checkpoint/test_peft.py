"""Adapter folders: tasks, names, and settings or tensors that do not fit."""

import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyvec.checkpoint import load_checkpoint, peft, save_checkpoint, save_compact
from polyvec.checkpoint.peft import MAX_ALPHA
from polyvec.tasks import TASKS, Task
from tests.checkpoint.conftest import CONFIG, assert_equal, edit_json, edit_tensors, random_weights


def test_adapters_of_any_name_and_number_are_kept(tmp_path: Path):
    tasks = (*TASKS, Task("legal.de", "Finde Urteile: "), Task("my_own"))
    config = replace(CONFIG, tasks=tasks)
    save_checkpoint(tmp_path / "m", config, random_weights(config))
    assert (tmp_path / "m" / "legal_de" / "adapter_config.json").exists()
    again, weights = load_checkpoint(tmp_path / "m")
    assert again == config
    assert_equal(weights, random_weights(config))


def test_an_adapter_folder_put_beside_the_others_becomes_a_task(model: Path):
    (model / "separation").rename(model / "mine")
    edit_json(model / "config.json", lora_adaptations=["classification"])
    names = [task.name for task in load_checkpoint(model)[0].tasks]
    five = [task.name for task in TASKS if task.name not in ("separation", "classification")]
    assert names == ["classification", *five, "mine"]


def test_an_adapter_without_targets_is_the_bare_encoder(model: Path):
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


def test_an_adapter_folder_cannot_be_a_link_elsewhere(model: Path):
    (model / "separation").rename(model.parent / "outside")
    (model / "separation").symlink_to(model.parent / "outside")
    with pytest.raises(ValueError, match="leads out of its folder"):
        load_checkpoint(model)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/b", "", "..", "ü"])
def test_a_task_s_name_cannot_lead_out_of_the_folder(model: Path, tmp_path: Path, name: str):
    (model / "separation").rename(model.parent / "outside")
    edit_json(model / "config.json", lora_adaptations=[name], task_instructions={name: ""})
    with pytest.raises(ValueError, match="is not a plain name"):
        load_checkpoint(model)
    config = replace(CONFIG, tasks=(Task(name),))
    for save in (save_checkpoint, save_compact):
        with pytest.raises(ValueError, match="is not a plain name"):
            save(tmp_path / "new", config, random_weights(config))


def test_two_tasks_cannot_share_a_folder(tmp_path: Path):
    config = replace(CONFIG, tasks=(Task("a.b"), Task("a-b")))
    with pytest.raises(ValueError, match="share a folder"):
        save_checkpoint(tmp_path / "m", config, random_weights(config))


def test_an_adapter_with_only_a_pickle_is_refused(model: Path):
    (model / "separation" / "adapter_model.safetensors").rename(
        model / "separation" / "adapter_model.bin"
    )
    with pytest.raises(ValueError, match=r"separation has no adapter_model\.safetensors"):
        load_checkpoint(model)


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
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": 1e308}, "lora_alpha is 1e[+]308"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000000.*must be a number"),
        ({"lora_alpha": MAX_ALPHA + 1}, "lora_alpha is 1000001"),
        ({"r": 1025}, "r is 1025"),
        ({"r": True}, "r is True"),
        ({"r": 10**400, "lora_alpha": 1}, "r is 1000"),
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
        (lambda t: t.update({KEY[17:]: t[KEY]}), "occurs twice"),
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


def test_adapters_without_a_folder_are_absent_with_a_warning(
    model: Path, caplog: pytest.LogCaptureFixture
):
    before = load_checkpoint(model)[1]
    for task in ("separation", "retrieval_query"):
        shutil.rmtree(model / task)
    config, weights = load_checkpoint(model)
    names = [task.name for task in config.tasks]
    assert names == ["retrieval.passage", "classification", "text-matching"]
    assert "separation" in caplog.text and "retrieval.query" in caplog.text
    for name, weight in weights.items():
        old = before[name]
        assert isinstance(old, np.ndarray) and isinstance(weight, np.ndarray)
        assert np.array_equal(weight, old[[1, 3, 4]] if "lora" in name else old)


def test_the_largest_alpha_is_read(model: Path):
    edit_json(model / "separation" / "adapter_config.json", lora_alpha=MAX_ALPHA)
    _, weights = load_checkpoint(model)
    banks = [weight for name, weight in weights.items() if "lora" in name]
    assert banks
    assert all(isinstance(bank, np.ndarray) and np.isfinite(bank).all() for bank in banks)


def widen(model: Path, rank: int) -> None:
    """Make one adapter's update of one small module one of a high rank."""
    folder = model / "separation"
    edit_json(folder / "adapter_config.json", r=rank, target_modules=["layers.1.mlp.fc1"])
    shapes = {KEY: (rank, 16), KEY.replace("lora_A", "lora_B"): (24, rank)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    edit_tensors(folder / "adapter_model.safetensors", lambda t: (t.clear(), t.update(tensors)))


def test_a_bank_that_would_be_mostly_padding_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    widen(model, 300)
    config, _ = load_checkpoint(model)
    assert config.adapter_rank == 300
    monkeypatch.setattr(peft, "FREE_BYTES", 0)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"separation: its rank of 300 .*; reduce r"):
            load_checkpoint(model)
        # The bank itself would have 3 million bytes.
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


def test_adapters_of_equal_rank_are_never_too_much_padding(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peft, "FREE_BYTES", 0)
    load_checkpoint(model)
