"""Weights on disk <-> canonical names. No PyTorch, no pickle, no code from a model's folder.

`load_checkpoint` reads three layouts and tells them apart by their tensors' names:

- the original `jinaai/jina-embeddings-v3`: adapters stacked beside every weight;
- transformers' native `jina_embeddings_v3`, one PEFT folder beside it for each adapter;
- compact: canonical names, 8-bit matrices, one file. The bundled model is stored so.

The sparse and the multi-vector head, which transformers knows nothing of, are in a file beside
the native layout's, `heads.safetensors`.

`save_checkpoint` writes the second, `save_compact` the third. In memory there is one form: a dict
whose keys are those of `Network.state_dict()`.

Axes in this file: O rows, I columns.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from polyvec.checkpoint.names import (
    Layout,
    file_names,
    list_modules,
    parameter_shapes,
    weight_shapes,
)
from polyvec.checkpoint.peft import (
    find_tasks,
    folder_names,
    read_adapters,
    write_adapters,
)
from polyvec.checkpoint.storage import (
    BFLOAT16,
    Int8Matrix,
    Stored,
    check_names,
    find_file,
    forget_pages,
    read_json,
    read_tensors,
    replace_folder,
    to_float,
    write_file,
    write_json,
    write_tensors,
)
from polyvec.config import ModelConfig, config_from_json, config_to_json

__all__ = [
    "Int8Matrix",
    "Weights",
    "detect_layout",
    "forget_pages",
    "load_checkpoint",
    "quantise_rows",
    "save_checkpoint",
    "save_compact",
    "to_float",
    "weight_shapes",
]

Weights = dict[str, np.ndarray | Int8Matrix]
"""Canonical names to tensors: float32, float16, bfloat16 (`ml_dtypes`), or 8-bit matrices."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADS = "heads.safetensors"

SCALES = ".scales"
"""Ends the name of an 8-bit matrix's scales in the compact layout."""


def load_checkpoint(folder: Path) -> tuple[ModelConfig, Weights]:
    """The config and the weights of a model folder, in any of the three layouts.

    Tensors are views of the mapped files in the format they are stored in; only what has no such
    form on disk is copied: PEFT's adapters, and q, k and v where a file keeps them apart. The bank
    has the largest rank that any adapter needs, so the config's may differ from config.json's.

    Raises ValueError naming the file, and the tensor, for anything missing, left over, damaged or
    of the wrong shape or dtype.
    """
    folder = Path(folder)
    config, data = _read_config(folder)
    stored = _read_model(folder)
    layout = _layout(stored)
    pooler = any(name.startswith("pooler.") for name in stored)
    mlm = any(name.startswith(("lm_head.", "mlm.")) for name in stored)
    banks: dict[str, np.ndarray] = {}
    if layout == "native":
        known = config.tasks if "lora_adaptations" in data else ()
        config = replace(config, tasks=find_tasks(folder, known))
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


def detect_layout(folder: Path) -> Layout:
    """Which of the three layouts a model folder has: "original", "native" or "compact"."""
    return _layout(_read_model(Path(folder)))


def _read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    if not folder.is_dir():
        raise ValueError(f"there is no model folder {folder}")
    path = find_file(folder, "config.json")
    if path is None:
        raise ValueError(f"{folder} has no config.json, so it is not a model")
    data = read_json(path)
    try:
        return config_from_json(data), data
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_model(folder: Path) -> dict[str, Stored]:
    """Every tensor of the model's file or shards and its heads', without a `roberta.` before it."""
    path = find_file(folder, WEIGHTS)
    index = find_file(folder, INDEX)
    if path is not None:
        found = read_tensors(path)
    elif index is not None:
        found = _read_shards(folder, index)
    else:
        raise ValueError(f"{folder} has no {WEIGHTS}; safetensors is the only format that is read")
    heads = find_file(folder, HEADS)
    beside = read_tensors(heads) if heads is not None else {}
    stored = {}
    for name, tensor in [*found.items(), *beside.items()]:
        plain = name.removeprefix("roberta.")
        if plain in stored:
            raise ValueError(f"{tensor.path}: tensor {plain!r} is there twice")
        stored[plain] = tensor
    return stored


def _read_shards(folder: Path, index: Path) -> dict[str, Stored]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: weight_map must give a file for every tensor")
    names = sorted(set(places.values()))
    check_names(names, str(index))
    stored = {}
    for name in names:
        path = find_file(folder, name)
        if path is None or path.suffix != ".safetensors":
            raise ValueError(f"{index} names {name!r}, which is no safetensors file beside it")
        for key, tensor in read_tensors(path).items():
            if places.get(key) != name:
                raise ValueError(
                    f"{path} has tensor {key!r}, which {index.name} does not put there"
                )
            stored[key] = tensor
    for key in places:
        if key not in stored:
            raise ValueError(
                f"{folder / places[key]} lacks tensor {key!r}, which {index.name} lists"
            )
    return stored


def _layout(stored: Mapping[str, Stored]) -> Layout:
    if "embeddings.word.weight" in stored:
        return "compact"
    return "original" if any(".parametrizations." in name for name in stored) else "native"


def _take(
    stored: dict[str, Stored],
    choices: list[tuple[str, ...]],
    shape: tuple[int, ...],
    folder: Path,
) -> np.ndarray | Int8Matrix:
    """Take one canonical tensor out of `stored`, under the first choice of names that is there."""
    names = next((names for names in choices if names[0] in stored), choices[0])
    rows = shape[0] // len(names)
    parts = [_take_one(stored, name, (rows, *shape[1:]), folder) for name in names]
    if any(part.dtype == np.int8 for part in parts):
        scales = stored.pop(names[0] + SCALES, None)
        if scales is None or scales.array.dtype != np.float32 or scales.array.shape != shape[:1]:
            raise ValueError(f"{folder}: 8-bit tensor {names[0]!r} lacks its float32 scale per row")
        if len(parts) > 1 or len(shape) != 2:
            raise ValueError(f"{folder}: tensor {names[0]!r} may not be in 8 bits")
        return Int8Matrix(parts[0], scales.array)
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _take_one(
    stored: dict[str, Stored], name: str, shape: tuple[int, ...], folder: Path
) -> np.ndarray:
    if name not in stored:
        raise ValueError(f"{folder} lacks tensor {name!r}; the model is incomplete")
    array, path = stored.pop(name)
    if array.shape != shape:
        raise ValueError(f"{path}: tensor {name!r} is {list(array.shape)}, must be {list(shape)}")
    return array


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray | Int8Matrix],
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model folder that transformers and PEFT read, and `load_checkpoint` too.

    The folder appears whole or not at all: an older checkpoint of that name is replaced at the
    end, and stays as it was if anything fails. `files` are written beside the weights (the
    tokenizer's `files()`, a model card).

    transformers expects a pooler that no embedding uses: without one in `weights`, zeros are
    written. With an MLM head in `weights` the folder is a `JinaEmbeddingsV3ForMaskedLM`, which has
    no pooler.

    Raises ValueError if a weight is missing, left over or of the wrong shape, or if `folder` holds
    anything but a checkpoint; OSError if the disk is full or read-only.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}, must be 'float32' or 'bfloat16'")
    pooler, mlm = _check_weights(config, weights)
    number = BFLOAT16 if dtype == "bfloat16" else np.dtype(np.float32)
    modules = list(list_modules(config, pooler=pooler, mlm=mlm))
    prefix = "roberta." if mlm else ""
    tensors: dict[str, np.ndarray | Int8Matrix] = {}
    heads: dict[str, np.ndarray | Int8Matrix] = {}
    for module in modules:
        for parameter in parameter_shapes(module, config):
            if module.kind == "head":
                heads[f"{module.disk}.{parameter}"] = weights[f"{module.name}.{parameter}"]
            elif not parameter.startswith("lora"):
                name = f"{module.disk}.{parameter}"
                name = name if module.disk.startswith("lm_head") else prefix + name
                tensors[name] = weights[f"{module.name}.{parameter}"]
    if not pooler and not mlm:
        tensors["pooler.dense.weight"] = np.zeros((config.width, config.width), np.float32)
        tensors["pooler.dense.bias"] = np.zeros(config.width, np.float32)
    data = config_to_json(config) | {"dtype": dtype}
    if mlm:
        data["architectures"] = ["JinaEmbeddingsV3ForMaskedLM"]
    with replace_folder(Path(folder)) as partial:
        _write_files(partial, data, files or {}, taken=folder_names(config))
        write_tensors(partial / WEIGHTS, tensors, dtype=number)
        if heads:
            write_tensors(partial / HEADS, heads, dtype=number)
        write_adapters(partial, config, modules, lambda name: to_float(weights[name]), number)


def save_compact(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray | Int8Matrix],
    *,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model for encoding only, in about a quarter of the space: one file, canonical names.

    Matrices are stored in 8 bits with a scale for every row, adapters, sparse and multi-vector
    heads in bfloat16, the rest in float32. Pooler and MLM head are left out. Other tools do not
    read this layout; transformers refuses it. Folder, `files` and errors are as for
    `save_checkpoint`.
    """
    _check_weights(config, weights)
    folder_names(config)
    tensors: dict[str, np.ndarray] = {}
    for module in list_modules(config, pooler=False, mlm=False):
        for parameter in parameter_shapes(module, config):
            weight = weights[f"{module.name}.{parameter}"]
            [(name,)] = file_names(module, parameter, "compact")
            if module.kind == "head" or parameter in ("lora_a", "lora_b"):
                tensors[name] = to_float(weight).astype(BFLOAT16)
            elif parameter == "weight" and len(weight.shape) == 2:
                matrix = weight if isinstance(weight, Int8Matrix) else quantise_rows(weight)
                tensors[name], tensors[name + SCALES] = matrix.values, matrix.scales
            else:
                tensors[name] = to_float(weight)
    data = config_to_json(config)
    # So that transformers does not take the folder for its own and invent the weights.
    del data["model_type"], data["architectures"]
    with replace_folder(Path(folder)) as partial:
        _write_files(partial, data, files or {}, taken=[])
        write_tensors(partial / WEIGHTS, tensors)


def quantise_rows(matrix: Float[np.ndarray, "O I"]) -> Int8Matrix:
    """The nearest matrix of 8-bit integers in -127..127 with one scale a row.

    No number moves by more than half its row's scale, that is by 1/254 of the row's largest.
    """
    wide = matrix.astype(np.float32)
    scales = np.abs(wide).max(axis=1, initial=0) / np.float32(127)
    safe = np.where(scales > 0, scales, np.float32(1))
    values = np.rint(wide / safe[:, None]).clip(-127, 127).astype(np.int8)
    return Int8Matrix(values, scales)


def _check_weights(
    config: ModelConfig, weights: Mapping[str, np.ndarray | Int8Matrix]
) -> tuple[bool, bool]:
    """Whether pooler and MLM head are there; ValueError unless the weights fit the config."""
    pooler, mlm = "pooler.weight" in weights, "mlm.bias" in weights
    shapes = weight_shapes(config, pooler=pooler, mlm=mlm)
    for name in [*shapes, *weights]:
        if name not in weights:
            raise ValueError(f"weights lack {name!r}, which this config has")
        if name not in shapes:
            raise ValueError(f"weights have {name!r}, which this config does not")
        if weights[name].shape != shapes[name]:
            raise ValueError(
                f"weight {name!r} is {list(weights[name].shape)}, must be {list(shapes[name])}"
            )
    return pooler, mlm


def _write_files(
    folder: Path, data: dict[str, Any], files: Mapping[str, bytes], *, taken: list[str]
) -> None:
    check_names(list(files), "files")
    if clash := {*files} & {"config.json", WEIGHTS, INDEX, HEADS, *taken}:
        raise ValueError(f"files may not include {min(clash)!r}, which the checkpoint writes")
    write_json(folder / "config.json", data)
    for name, content in files.items():
        write_file(folder / name, [content])
