"""Export one task of a model as a model of its own, in the format of sentence-transformers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from polyvec.checkpoint import Weight, Weights, save_checkpoint, to_float
from polyvec.config import ModelConfig
from polyvec.tasks import adapter_index


def merge_task(
    config: ModelConfig, weights: Mapping[str, Weight], task: str
) -> tuple[ModelConfig, Weights]:
    """A model without adapters, in float32, that encodes every text as `task` does."""
    adapter_id = adapter_index(config.tasks, task)
    merged: Weights = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            merged[name] = _bank(weight)[:0]
            continue
        full = to_float(weight)
        module = name.removesuffix(".weight")
        if f"{module}.lora_a" in weights:
            a, b = (_bank(weights[f"{module}.lora_{side}"])[adapter_id] for side in "ab")
            # The A of an embedding has one row per row of the table.
            update = a @ b if a.shape[0] == full.shape[0] else b @ a
            full = full + config.adapter_scale * update
        merged[name] = full
    return replace(config, tasks=()), merged


def _bank(tensor: Weight) -> np.ndarray:
    assert isinstance(tensor, np.ndarray), "adapters are not quantised"
    return tensor.astype(np.float32)


def save_sentence_transformer(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Weight],
    task: str,
    *,
    files: Mapping[str, bytes],
) -> None:
    """Write one task as a folder that sentence-transformers loads without remote code.

    Its `encode(texts)` returns the embeddings of `Encoder.encode(texts, task=task)`: the task's
    instruction is the default prompt. `files` are the tokenizer's.
    """
    prompt = config.tasks[adapter_index(config.tasks, task)].prompt
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    settings = {
        "prompts": {task: prompt} if prompt else {},
        "default_prompt_name": task if prompt else None,
        "similarity_fn_name": "cosine",
    }
    pooling = {"word_embedding_dimension": config.width, "pooling_mode_mean_tokens": True}
    extra = {"modules.json": modules, "config_sentence_transformers.json": settings}
    merged_config, merged = merge_task(config, weights, task)
    written = {name: json.dumps(data, indent=2).encode() for name, data in extra.items()}
    save_checkpoint(folder, merged_config, merged, files={**files, **written})
    for number, data in ((1, pooling), (2, {})):
        part = folder / f"{number}_{kinds[number]}"
        part.mkdir(exist_ok=True)
        (part / "config.json").write_text(json.dumps(data, indent=2))
