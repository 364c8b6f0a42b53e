"""Build the full-size model with random weights and count its parameters to the last digit.

`python -m benchmarks.size` writes build/full, 1.15 GB in bf16, which the other benchmarks load.
`--layers 2` makes a short one of the same width, for trying things out.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers
import tyro
from tokenizers import models, processors

from benchmarks.report import describe_machine, write_section
from polyvec.checkpoint import Weights, save_checkpoint, weight_shapes
from polyvec.config import ModelConfig

PUBLISHED = 572_310_396
"""Parameters of jina-embeddings-v3 with its five adapters and its unused pooler."""


def count_parameters(config: ModelConfig) -> int:
    """Numbers in a model of this shape, adapters and pooler included."""
    return sum(int(np.prod(shape)) for shape in weight_shapes(config).values())


def make_weights(config: ModelConfig) -> Weights:
    """Random bf16 weights that keep activations in a trained model's range."""
    rng = np.random.default_rng(0)
    weights: Weights = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith("norm.weight"):
            weights[name] = np.ones(shape, ml_dtypes.bfloat16)
            continue
        array = np.empty(int(np.prod(shape)), ml_dtypes.bfloat16)
        # In pieces, since float32 of everything would take twice the model's memory.
        for piece in np.array_split(array, max(1, array.size // 2**22)):
            piece[:] = rng.standard_normal(piece.size, np.float32) * 0.02
        weights[name] = array.reshape(shape)
    return weights


def write_model(folder: Path, layers: int) -> None:
    """Save a random model of full width, with a tokenizer of single characters."""
    config = replace(ModelConfig(), num_layers=layers)
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, config, make_weights(config), dtype="bfloat16")
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(chr(code), -5.0) for code in range(32, 127)]
    core = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    core.save(str(folder / "tokenizer.json"))


def main(folder: Path = Path("build/full"), layers: int = 24) -> None:
    """Write the model and the section of docs/performance.md, or fail on another count."""
    write_model(folder, layers)
    config = json.loads((folder / "config.json").read_text())
    count = count_parameters(replace(ModelConfig(), num_layers=config["num_hidden_layers"]))
    stored = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    text = f"{count:,} parameters, {stored / 1e9:.3f} GB of safetensors in bf16"
    sys.stdout.write(f"{folder}: {text}\n")
    if layers == 24:
        if count != PUBLISHED:
            sys.exit(f"expected {PUBLISHED:,} parameters")
        write_section(
            "size",
            "## Size\n\nThe full-size model, built with random weights: "
            f"**{text}**, the count published for jina-embeddings-v3.\n\n"
            f"{describe_machine('polyvec')} `python -m benchmarks.size`",
        )


if __name__ == "__main__":
    tyro.cli(main)
