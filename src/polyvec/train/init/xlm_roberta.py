"""XLM-RoBERTa as the start of stage 1, as in the paper (arXiv:2409.10173, section 4.1).

The blocks, the token table and the masked-LM head are kept. Rotary positions replace the table of
absolute positions. Training adapts the network to them, which is faster than training a network
with random weights.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from polyvec.config import MATRYOSHKA_DIMS, ModelConfig
from polyvec.network import Network
from polyvec.tasks import TASKS, Task
from polyvec.train.init.bert import bert_tensor

HEAD = {
    "mlm.dense.": "lm_head.dense.",
    "mlm.norm.": "lm_head.layer_norm.",
    "mlm.bias": "lm_head.bias",
}
"""Our names and RoBERTa's."""


def read_xlm_roberta(
    folder: Path,
    *,
    max_tokens: int = 8192,
    tasks: tuple[Task, ...] = TASKS,
    dropout: float = 0.1,
) -> Network:
    """Read a transformers folder of XLM-RoBERTa as a network with a masked-LM head.

    The adapters are new, depend on `torch.manual_seed`, and have no effect before training. The
    rotary base is that of training, 10,000. Raises ValueError for another architecture or a
    missing tensor.
    """
    shape = json.loads((folder / "config.json").read_text())
    if shape.get("model_type") != "xlm-roberta" or shape["hidden_act"] != "gelu":
        raise ValueError(f"{folder} is no XLM-RoBERTa with GELU, according to its config.json")
    width = shape["hidden_size"]
    config = ModelConfig(
        vocab_size=shape["vocab_size"],
        width=width,
        num_layers=shape["num_hidden_layers"],
        num_heads=shape["num_attention_heads"],
        ffn_width=shape["intermediate_size"],
        layer_norm_eps=shape["layer_norm_eps"],
        max_tokens=max_tokens,
        rope_base=10_000.0,
        tasks=tasks,
        dims=tuple(sorted({*(dim for dim in MATRYOSHKA_DIMS if dim < width), width})),
    )
    stored = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("roberta."): tensor for name, tensor in stored.items()}
    network = Network(config, dropout=dropout, mlm=True)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" not in name:
                parameter.copy_(_find(tensors, name, folder))
    return network


def _find(tensors: dict[str, Tensor], name: str, folder: Path) -> Tensor:
    try:
        for ours, theirs in HEAD.items():
            if name.startswith(ours):
                return tensors[theirs + name.removeprefix(ours)]
        return bert_tensor(tensors, name)
    except KeyError as missing:
        raise ValueError(f"{folder} lacks tensor {missing}; save the masked-LM model") from None
