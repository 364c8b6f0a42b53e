"""The name of every tensor, here and in files, and its shape. One table serves all layouts.

The same module has names in four vocabularies:

- ours: the keys of `Network.state_dict()`;
- disk: the names of the original checkpoint, which transformers writes too;
- memory: the names inside transformers' model, where q, k and v are three modules, and PEFT's;
- original: the disk names, with `parametrizations` in the name of every weight that has adapters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from polyvec.config import ModelConfig

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEADS_FILE = "heads.safetensors"

Layout = Literal["original", "native", "compact"]


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the network, under every name that a file may use for it."""

    name: str
    """Our name."""

    disk: str
    """Name in the original checkpoint and in files that transformers writes."""

    memory: tuple[str, ...]
    """Name inside transformers' model, or three names for q, k and v."""

    shape: tuple[int, ...]
    """Shape of the weight, outputs first; that of the bias for kind "bias", which has no weight."""

    kind: Literal["linear", "embedding", "plain", "head", "bias"]
    """The first two have adapters. Heads, which transformers lacks, have a file of their own."""

    @property
    def has_adapters(self) -> bool:
        """Whether the bank has tensors for this module."""
        return self.kind in ("linear", "embedding")


def list_modules(config: ModelConfig, *, pooler: bool, mlm: bool) -> Iterator[Module]:
    """Every module with weights, from the embeddings up."""
    width, ffn, vocab = config.width, config.ffn_width, config.vocab_size

    def same(
        name: str,
        disk: str,
        shape: tuple[int, ...],
        kind: Literal["linear", "embedding", "plain", "head"],
    ) -> Module:
        return Module(name, disk, (disk,), shape, kind)

    table = "embeddings.word_embeddings"
    yield same("embeddings.word", table, (vocab, width), "embedding")
    table = "embeddings.token_type_embeddings"
    yield same("embeddings.token_type", table, (1, width), "embedding")
    norm = ("embeddings.LayerNorm",)
    yield Module("embeddings.norm", "emb_ln", norm, (width,), "plain")
    for number in range(config.num_layers):
        ours, memory = f"layers.{number}", f"layers.{number}"
        disk, attention = f"encoder.{memory}", f"{memory}.self_attn"
        qkv = tuple(f"{attention}.{letter}_proj" for letter in "qkv")
        out, up, down = (
            (f"{attention}.o_proj",),
            (f"{memory}.mlp.fc1",),
            (f"{memory}.mlp.fc2",),
        )
        first, second = (
            f"{memory}.post_attention_layernorm",
            f"{memory}.post_mlp_layernorm",
        )
        yield Module(f"{ours}.qkv", f"{disk}.mixer.Wqkv", qkv, (3 * width, width), "linear")
        yield Module(f"{ours}.out", f"{disk}.mixer.out_proj", out, (width, width), "linear")
        yield Module(f"{ours}.attention_norm", f"{disk}.norm1", (first,), (width,), "plain")
        yield Module(f"{ours}.up", f"{disk}.mlp.fc1", up, (ffn, width), "linear")
        yield Module(f"{ours}.down", f"{disk}.mlp.fc2", down, (width, ffn), "linear")
        yield Module(f"{ours}.ffn_norm", f"{disk}.norm2", (second,), (width,), "plain")
    if config.sparse_head:
        yield same("sparse", "sparse", (1, width), "head")
    if config.multi_vector_dim:
        yield same("multi_vector", "multi", (config.multi_vector_dim, width), "head")
    if pooler:
        yield same("pooler", "pooler.dense", (width, width), "linear")
    if mlm:
        yield same("mlm.dense", "lm_head.dense", (width, width), "plain")
        yield same("mlm.norm", "lm_head.layer_norm", (width,), "plain")
        yield Module("mlm", "lm_head", ("lm_head",), (vocab,), "bias")


def parameter_shapes(module: Module, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of one module's tensors, by the last part of their names."""
    adapters, rank = len(config.tasks), config.adapter_rank
    if module.kind == "bias":
        return {"bias": module.shape}
    if module.kind in ("plain", "head"):
        return {"weight": module.shape, "bias": module.shape[:1]}
    outputs, inputs = module.shape
    if module.kind == "embedding":
        # As in the original, A is the factor of an embedding's adapter that has a row per token.
        banks = {
            "lora_a": (adapters, outputs, rank),
            "lora_b": (adapters, rank, inputs),
        }
        return {"weight": module.shape, **banks}
    banks = {"lora_a": (adapters, rank, inputs), "lora_b": (adapters, outputs, rank)}
    return {"weight": module.shape, "bias": (outputs,), **banks}


def weight_shapes(
    config: ModelConfig, *, pooler: bool = True, mlm: bool = False
) -> dict[str, tuple[int, ...]]:
    """Every canonical weight name with its shape, in the network's order.

    The released checkpoint has a pooler, which no embedding uses. The MLM head is optional.

    >>> import math
    >>> sum(math.prod(shape) for shape in weight_shapes(ModelConfig()).values())
    572310396
    """
    return {
        f"{module.name}.{parameter}": shape
        for module in list_modules(config, pooler=pooler, mlm=mlm)
        for parameter, shape in parameter_shapes(module, config).items()
    }


def file_names(module: Module, parameter: str, layout: Layout) -> list[tuple[str, ...]]:
    """The names that a parameter may have in a file of this layout, the likeliest first.

    Each choice is the name of one tensor, or of three that are concatenated.
    """
    if layout == "compact":
        return [(f"{module.disk if module.kind == 'head' else module.name}.{parameter}",)]
    if layout == "original" and module.has_adapters and parameter != "bias":
        tail = {"weight": "original", "lora_a": "0.lora_A", "lora_b": "0.lora_B"}[parameter]
        return [(f"{module.disk}.parametrizations.weight.{tail}",)]
    disk = (f"{module.disk}.{parameter}",)
    memory = tuple(f"{name}.{parameter}" for name in module.memory)
    return [disk] if disk == memory else [disk, memory]
