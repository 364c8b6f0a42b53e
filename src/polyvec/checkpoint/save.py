"""Write a model folder: the layout of transformers and PEFT, or our own compact one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polyvec.checkpoint.names import (
    HEADS_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    file_names,
    list_modules,
    parameter_shapes,
    weight_shapes,
)
from polyvec.checkpoint.peft import folder_names, write_adapters
from polyvec.checkpoint.quantised import Weight, quantise, to_float, to_tensors
from polyvec.checkpoint.storage import (
    BFLOAT16,
    check_names,
    replace_folder,
    write_file,
    write_json,
    write_tensors,
)
from polyvec.config import ModelConfig, config_to_json


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Weight],
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model folder that transformers, PEFT and `load_checkpoint` read.

    The folder appears complete or not at all. An older checkpoint of that name is replaced at the
    end, and remains unchanged if anything fails. `files` are written beside the weights (the
    tokenizer's `files()`, a model card).

    transformers expects a pooler, which no embedding uses; if `weights` has none, zeros are
    written. If `weights` has an MLM head, the folder is a `JinaEmbeddingsV3ForMaskedLM`, which has
    no pooler.

    Raises ValueError if a weight is missing, left over or of the wrong shape, or if `folder` holds
    anything but a checkpoint. Raises OSError if the disk is full or read-only.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}, must be 'float32' or 'bfloat16'")
    pooler, mlm = _check_weights(config, weights)
    number = BFLOAT16 if dtype == "bfloat16" else np.dtype(np.float32)
    modules = list(list_modules(config, pooler=pooler, mlm=mlm))
    prefix = "roberta." if mlm else ""
    tensors: dict[str, Weight] = {}
    heads: dict[str, Weight] = {}
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
        write_tensors(partial / WEIGHTS_FILE, tensors, dtype=number)
        if heads:
            write_tensors(partial / HEADS_FILE, heads, dtype=number)
        write_adapters(partial, config, modules, lambda name: to_float(weights[name]), number)


def save_compact(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Weight],
    *,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model for encoding only: one file in about a quarter of the space.

    Matrices are stored in 8 bits with one scale per row; adapters and the sparse and multi-vector
    heads are stored in bfloat16, and everything else in float32. The pooler and the MLM head are
    left out. Other tools do not read this layout, and transformers refuses it. The folder, `files`
    and the errors are as for `save_checkpoint`.
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
                tensors |= to_tensors(name, quantise(weight))
            else:
                tensors[name] = to_float(weight)
    data = config_to_json(config)
    # Without these keys transformers refuses the folder. With them, it would start from random
    # weights, because it does not know the names.
    del data["model_type"], data["architectures"]
    with replace_folder(Path(folder)) as partial:
        _write_files(partial, data, files or {}, taken=[])
        write_tensors(partial / WEIGHTS_FILE, tensors)


def _check_weights(config: ModelConfig, weights: Mapping[str, Weight]) -> tuple[bool, bool]:
    """Whether there are a pooler and an MLM head. Raises ValueError if weights do not fit."""
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
    if clash := {*files} & {"config.json", WEIGHTS_FILE, INDEX_FILE, HEADS_FILE, *taken}:
        raise ValueError(f"files may not include {min(clash)!r}, which the checkpoint writes")
    write_json(folder / "config.json", data)
    for name, content in files.items():
        write_file(folder / name, [content])
