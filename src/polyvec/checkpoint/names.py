"""What every tensor is called, here and elsewhere, and its shape. One table serves all layouts.

Four vocabularies name the same modules:

- ours: the keys of `Network.state_dict()`;
- disk: the original checkpoint's names, which transformers also writes;
- memory: transformers' names inside its model, where q, k and v are three modules; PEFT's too;
- original: the disk names, with `parametrizations` around every weight that has adapters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from polyvec.config import ModelConfig

Layout = Literal["original", "native", "compact"]


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the network, under every name that a file may use for it."""

    name: str
    """Ours."""

    disk: str
    """In the original checkpoint and in files that transformers writes."""

    memory: tuple[str, ...]
    """Inside transformers' model: one name, or q, k and v."""

    shape: tuple[int, ...]
    """Of the weight; outputs come first. A lone bias has no weight and an empty shape."""

    kind: Literal["linear", "embedding", "plain", "head", "bias"]
    """The first two carry adapters; heads, which transformers lacks, have a file of their own."""

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
    """The tensors of one module, by their last name."""
    adapters, rank = len(config.tasks), config.adapter_rank
    if module.kind == "bias":
        return {"bias": module.shape}
    if module.kind in ("plain", "head"):
        return {"weight": module.shape, "bias": module.shape[:1]}
    outputs, inputs = module.shape
    if module.kind == "embedding":
        # As in the original, A is the table-sized side of an embedding's adapter.
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

    The pooler is in the released checkpoint but no embedding uses it; the MLM head is optional.

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
    """What a file of this layout may call a parameter, the likeliest first.

    Each choice is one tensor, or three to be laid on top of one another.
    """
    if layout == "compact":
        return [(f"{module.disk if module.kind == 'head' else module.name}.{parameter}",)]
    if layout == "original" and module.has_adapters and parameter != "bias":
        tail = {"weight": "original", "lora_a": "0.lora_A", "lora_b": "0.lora_B"}[parameter]
        return [(f"{module.disk}.parametrizations.weight.{tail}",)]
    disk = (f"{module.disk}.{parameter}",)
    memory = tuple(f"{name}.{parameter}" for name in module.memory)
    return [disk] if disk == memory else [disk, memory]
