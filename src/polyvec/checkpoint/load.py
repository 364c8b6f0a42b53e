"""Read a model folder: its config and its weights, in any of the layouts."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.checkpoint.names import (
    HEADS_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    Layout,
    file_names,
    list_modules,
    parameter_shapes,
)
from polyvec.checkpoint.peft import find_tasks, read_adapters
from polyvec.checkpoint.quantised import Weight, Weights, from_tensors
from polyvec.checkpoint.storage import Stored, check_names, find_file, read_json, read_tensors
from polyvec.config import ModelConfig, config_from_json

logger = logging.getLogger(__name__)


def load_checkpoint(folder: Path) -> tuple[ModelConfig, Weights]:
    """The config and the weights of a model folder, in any of the three layouts.

    Tensors are views of the mapped files, in the format in which they are stored. Only tensors that
    no file holds in this form are copied: PEFT's adapters, and q, k and v if a file keeps them
    apart. The bank has the largest rank that any adapter needs, so `config.adapter_rank` may differ
    from the rank in config.json.

    transformers, sentence-transformers and PEFT keep our keys in config.json when they save a
    model, but not the files of all adapters and heads. Those without a file are left out of the
    config, with a warning.

    Raises ValueError, naming the file and the tensor, for anything that is missing, left over,
    damaged, or of the wrong shape or dtype.
    """
    folder = Path(folder)
    config, data = _read_config(folder)
    stored = _read_model(folder)
    layout = _find_layout(stored)
    pooler = any(name.startswith("pooler.") for name in stored)
    mlm = any(name.startswith(("lm_head.", "mlm.")) for name in stored)
    banks: dict[str, np.ndarray] = {}
    if layout == "native":
        known = config.tasks if "lora_adaptations" in data else ()
        config = replace(config, tasks=find_tasks(folder, known))
        config = _leave_out_heads(folder, config, stored)
        config, banks = read_adapters(folder, config, pooler=pooler)
    weights: Weights = {}
    for module in list_modules(config, pooler=pooler, mlm=mlm):
        for parameter, shape in parameter_shapes(module, config).items():
            name = f"{module.name}.{parameter}"
            if name in banks:
                weights[name] = banks[name]
            else:
                choices = file_names(module, parameter, layout)
                weights[name] = _take(stored, choices, shape, folder)
    if stored:
        name = min(stored)
        raise ValueError(f"{stored[name].path} has a tensor with no place in the model: {name!r}")
    return config, weights


def _leave_out_heads(
    folder: Path, config: ModelConfig, stored: Mapping[str, Stored]
) -> ModelConfig:
    """The config without its heads, if there is no file of heads and no tensor of one."""
    has_heads = config.sparse_head or config.multi_vector_dim
    found = find_file(folder, HEADS_FILE) or any(
        name.startswith(("sparse.", "multi.")) for name in stored
    )
    if not has_heads or found:
        return config
    logger.warning(
        "%s has no %s: the model has neither sparse weights nor token vectors", folder, HEADS_FILE
    )
    return replace(config, sparse_head=False, multi_vector_dim=0)


def detect_layout(folder: Path) -> Layout:
    """The layout of a model folder: "original", "native" or "compact"."""
    return _find_layout(_read_model(Path(folder)))


def _read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    if not folder.is_dir():
        raise ValueError(f"there is no model folder {folder}")
    path = find_file(folder, "config.json")
    if path is None and find_file(folder, "adapter_config.json") is not None:
        raise ValueError(
            f"{folder} holds only an adapter, as PEFT saves it; move its files into a folder named "
            "as its task, in the folder of the model that it belongs to"
        )
    if path is None:
        raise ValueError(f"{folder} is not a model folder: config.json is missing")
    data = read_json(path)
    try:
        return config_from_json(data), data
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_model(folder: Path) -> dict[str, Stored]:
    """Every tensor of the model's file or shards, and of the heads' file, by its name.

    The prefix `roberta.` is removed from the names.
    """
    path = find_file(folder, WEIGHTS_FILE)
    index = find_file(folder, INDEX_FILE)
    if path is not None:
        tensors = read_tensors(path)
    elif index is not None:
        tensors = _read_shards(folder, index)
    else:
        raise ValueError(
            f"{folder} has no {WEIGHTS_FILE}; safetensors is the only format that is read"
        )
    heads = find_file(folder, HEADS_FILE)
    head_tensors = read_tensors(heads) if heads is not None else {}
    stored = {}
    for name, tensor in [*tensors.items(), *head_tensors.items()]:
        plain = name.removeprefix("roberta.")
        if plain in stored:
            raise ValueError(f"{tensor.path}: tensor {plain!r} occurs twice")
        stored[plain] = tensor
    return stored


def _read_shards(folder: Path, index: Path) -> dict[str, Stored]:
    """The tensors of a model in several files; the index must say exactly what each file holds."""
    files = read_json(index).get("weight_map")
    if (
        not isinstance(files, dict)
        or not files
        or not all(isinstance(name, str) for name in files.values())
    ):
        raise ValueError(f"{index}: weight_map must give a file for every tensor")
    names = sorted(set(files.values()))
    check_names(names, str(index))
    stored = {}
    for name in names:
        path = find_file(folder, name)
        if path is None or path.suffix != ".safetensors":
            raise ValueError(
                f"{index} names {name!r}, but there is no such safetensors file beside it"
            )
        for key, tensor in read_tensors(path).items():
            if files.get(key) != name:
                raise ValueError(
                    f"{path} has tensor {key!r}, which {index.name} does not put there"
                )
            stored[key] = tensor
    for key in files:
        if key not in stored:
            raise ValueError(
                f"{folder / files[key]} lacks tensor {key!r}, which {index.name} lists"
            )
    return stored


def _find_layout(stored: Mapping[str, Stored]) -> Layout:
    if "embeddings.word.weight" in stored:
        return "compact"
    return "original" if any(".parametrizations." in name for name in stored) else "native"


def _take(
    stored: dict[str, Stored],
    choices: list[tuple[str, ...]],
    shape: tuple[int, ...],
    folder: Path,
) -> Weight:
    """Remove one canonical tensor from `stored`, under the first choice of names that is there."""
    names = next((names for names in choices if names[0] in stored), choices[0])
    rows = shape[0] // len(names)
    parts = [_take_one(stored, name, (rows, *shape[1:]), folder) for name in names]
    if len(parts) == 1:
        return parts[0]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) < len(parts):
        raise ValueError(f"{folder}: tensor {names[0]!r} may not be quantised")
    return np.concatenate(arrays)


def _take_one(stored: dict[str, Stored], name: str, shape: tuple[int, ...], folder: Path) -> Weight:
    if name not in stored:
        raise ValueError(f"{folder} lacks tensor {name!r}; the model is incomplete")
    array, path = stored.pop(name)
    if array.shape != shape:
        raise ValueError(f"{path}: tensor {name!r} is {list(array.shape)}, must be {list(shape)}")

    def take(other: str) -> np.ndarray | None:
        return stored.pop(other).array if other in stored else None

    try:
        return from_tensors(name, array, take)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
