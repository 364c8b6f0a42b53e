"""A fingerprint follows what decides a vector, and nothing else."""

import json
import shutil

import numpy as np
import pytest

from polyvec.checkpoint import fingerprint
from tests.checkpoint.conftest import edit_json, edit_tensors


@pytest.fixture
def tokenised(model):
    """A model folder with a tokenizer."""
    (model / "tokenizer.json").write_text("{}")
    return model


def test_a_fingerprint_does_not_depend_on_names_times_and_other_files(tokenised, tmp_path):
    copy = shutil.copytree(tokenised, tmp_path / "another name", copy_function=shutil.copyfile)
    (copy / "README.md").write_text("words")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "adapter_config.json").write_text("{}")
    assert fingerprint(copy) == fingerprint(tokenised)


@pytest.mark.parametrize("part", ["weights", "rows", "config", "tokenizer", "adapter", "heads"])
def test_a_fingerprint_changes_with_every_part_of_a_model(tokenised, part):
    before = fingerprint(tokenised)
    weights = tokenised / "model.safetensors"
    adapter = next(tokenised.glob("*/adapter_model.safetensors"))

    def swap_rows(tensors):
        [name] = [name for name in tensors if name.endswith("word_embeddings.weight")]
        tensors[name][[0, 1]] = tensors[name][[1, 0]]

    if part == "weights":
        edit_tensors(weights, lambda t: t.update({k: v + 1e-6 for k, v in t.items()}))
    elif part == "rows":
        edit_tensors(weights, swap_rows)
    elif part == "config":
        config = json.loads((tokenised / "config.json").read_text())
        edit_json(tokenised / "config.json", rope_theta=config.get("rope_theta", 1) + 1)
    elif part == "tokenizer":
        (tokenised / "tokenizer.json").write_text("{ }")
    elif part == "adapter":
        edit_tensors(adapter, lambda t: t.update({k: 2 * v for k, v in t.items()}))
    else:
        (tokenised / "heads.safetensors").write_bytes(np.arange(3).tobytes())
    assert fingerprint(tokenised) != before
