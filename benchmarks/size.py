"""Build the full-size model with random weights, and count its parameters.

`python -m benchmarks.size` writes build/full, 1.15 GB in bf16, which other benchmarks load. With
`--layers 2` the model has two layers of the same width, for trials.
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

from benchmarks.report import describe_machine, table, write_section
from polyvec.checkpoint import Weights, save_checkpoint, weight_shapes
from polyvec.config import ModelConfig

PUBLISHED_PARAMETERS = 572_310_396
"""Parameters of jina-embeddings-v3, including its five adapters and its unused pooler."""


def count_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of a model, including its adapters and its pooler."""
    return sum(int(np.prod(shape)) for shape in weight_shapes(config).values())


def make_weights(config: ModelConfig) -> Weights:
    """Return random bf16 weights that keep activations in the range of a trained model."""
    rng = np.random.default_rng(0)
    weights: Weights = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith("norm.weight"):
            weights[name] = np.ones(shape, ml_dtypes.bfloat16)
            continue
        array = np.empty(int(np.prod(shape)), ml_dtypes.bfloat16)
        # In pieces, because float32 of everything would take twice the memory of the model.
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
    """Write the model, and the table in docs/performance.md.

    Exits with 1 if the full-size model has another number of parameters than published.
    """
    write_model(folder, layers)
    config = json.loads((folder / "config.json").read_text())
    count = count_parameters(replace(ModelConfig(), num_layers=config["num_hidden_layers"]))
    stored = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    sizes = table(["parameters", "safetensors in bf16"], [[f"{count:,}", f"{stored / 1e9:.3f} GB"]])
    sys.stdout.write(f"{folder}\n{sizes}\n")
    if layers == 24:
        if count != PUBLISHED_PARAMETERS:
            sys.exit(f"expected {PUBLISHED_PARAMETERS:,} parameters")
        machine = describe_machine("polyvec")
        write_section("size", f"{sizes}\n\n{machine} `python -m benchmarks.size`")


if __name__ == "__main__":
    tyro.cli(main)
