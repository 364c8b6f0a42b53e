"""Phase 7: the model's folder."""

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from polyvec.checkpoint import save_compact
from recipes.mini.config import CONFIG, INFERENCE_ROPE_BASE
from recipes.mini.runs import load_adapters, newest


def write_model(out: Path) -> None:
    """Write int8 weights, the config with the rotary base of inference, and the tokenizer."""
    network = load_adapters(out)
    network.load_state_dict(load_file(newest(out / "heads")), strict=False)
    weights = {name: parameter.numpy() for name, parameter in network.named_parameters()}
    files = {"tokenizer.json": (out / "tokenizer.json").read_bytes()}
    config = replace(CONFIG, rope_base=INFERENCE_ROPE_BASE)
    save_compact(out / "model", config, weights, files=files)
