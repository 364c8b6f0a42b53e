"""The configuration of a model: sizes, rotary base, tasks, Matryoshka dims; JSON in and out."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polyvec.tasks import TASKS, Task

MATRYOSHKA_DIMS = (32, 64, 128, 256, 512, 768, 1024)

LIMITS = {
    "vocab_size": 2_000_000,
    "width": 16_384,
    "num_layers": 256,
    "num_heads": 256,
    "ffn_width": 131_072,
    "max_tokens": 1_048_576,
    "adapter_rank": 1_024,
}
"""Values outside 1..limit are refused before memory is allocated for the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and tasks of a model, by default jina-embeddings-v3's (arXiv:2409.10173, table 1)."""

    vocab_size: int = 250_002
    """Number of pieces in the tokenizer's vocabulary."""

    width: int = 1024
    """Size of a hidden state and of an embedding that is not truncated."""

    num_layers: int = 24
    """Number of transformer blocks."""

    num_heads: int = 16
    """Number of attention heads. The width of each, width / num_heads, must be even."""

    ffn_width: int = 4096
    """Size of the hidden layer in a block's feed-forward part."""

    max_tokens: int = 8192
    """Longest text in tokens, including special tokens and the instruction."""

    layer_norm_eps: float = 1e-5
    """Number that every layer norm adds to the variance."""

    rope_base: float = 20_000.0
    """Base of the rotary angles when encoding. Training uses 10,000 (section 3)."""

    tasks: tuple[Task, ...] = TASKS
    """The tasks in the order of their adapters in the bank; each has one adapter."""

    adapter_rank: int = 4
    """Rank of every adapter."""

    adapter_alpha: float = 1.0
    """An adapter's update is multiplied by alpha / rank."""

    dims: tuple[int, ...] = MATRYOSHKA_DIMS
    """The Matryoshka sizes for which the model was trained, ascending; the last is the width."""

    sparse_head: bool = False
    """Whether the model has a head for token weights (`Encoder.encode_sparse`)."""

    multi_vector_dim: int = 0
    """Size of a token's embedding (`Encoder.encode_multi_vector`); 0 if the model has none."""

    bos_id: int = 0
    """`<s>`, the first token of every text."""

    pad_id: int = 1
    """`<pad>`. No engine lets it affect a result."""

    eos_id: int = 2
    """`</s>`, the last token of every text."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(
                    f"config: {name} is {value!r:.100}, must be an integer in 1..{limit}"
                )
        if self.width % self.num_heads or self.head_width % 2:
            raise ValueError(
                f"config: width {self.width} does not split into {self.num_heads} even heads"
            )
        for name in ("layer_norm_eps", "rope_base", "adapter_alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"config: {name} is {getattr(self, name)!r}, must be positive")
        if not self.dims or any(type(d) is not int or not 1 <= d <= self.width for d in self.dims):
            raise ValueError(
                f"config: Matryoshka dims {self.dims!r:.100} must lie in 1..{self.width}"
            )
        if list(self.dims) != sorted(set(self.dims)):
            raise ValueError(f"config: Matryoshka dims {self.dims!r:.100} must ascend")
        if type(self.sparse_head) is not bool:
            raise ValueError(
                f"config: sparse_head is {self.sparse_head!r:.100}, must be true or false"
            )
        if (
            type(self.multi_vector_dim) is not int
            or not 0 <= self.multi_vector_dim <= LIMITS["width"]
        ):
            raise ValueError(
                f"config: multi_dim is {self.multi_vector_dim!r:.100}, must be an integer in "
                f"0..{LIMITS['width']}"
            )
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names) or len(names) > 1_000:
            raise ValueError(f"config: tasks {names!r:.100} must be distinct, at most 1,000")
        for name in ("bos_id", "pad_id", "eos_id"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < self.vocab_size:
                raise ValueError(f"config: {name} is {value!r:.100}, outside the vocabulary")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def adapter_scale(self) -> float:
        """The factor by which an adapter's update is multiplied."""
        return self.adapter_alpha / self.adapter_rank


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The config as transformers' `JinaEmbeddingsV3Config` reads it, with keys for the adapters.

    The keys for the adapters are those of the original checkpoint, so one reader serves both.
    """
    heads: dict[str, Any] = {"sparse_head": True} if config.sparse_head else {}
    if config.multi_vector_dim:
        heads["multi_dim"] = config.multi_vector_dim
    return heads | {
        "architectures": ["JinaEmbeddingsV3Model"],
        "model_type": "jina_embeddings_v3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "gelu",
        # In XLM-RoBERTa positions start after the pad id, hence the two extra rows.
        "max_position_embeddings": config.max_tokens + 2,
        "type_vocab_size": 1,
        "layer_norm_eps": config.layer_norm_eps,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"},
        "bos_token_id": config.bos_id,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "lora_adaptations": [task.name for task in config.tasks],
        "task_instructions": {task.name: task.prompt for task in config.tasks},
        "lora_rank": config.adapter_rank,
        "lora_alpha": config.adapter_alpha,
        "matryoshka_dimensions": list(config.dims),
    }


def config_from_json(data: Mapping[str, Any]) -> ModelConfig:
    """Parse a config.json of jina-embeddings-v3, in the original or the native layout.

    Raises ValueError for a missing key, another architecture, or a size outside `LIMITS`.
    """
    if data.get("model_type", "jina_embeddings_v3") not in ("jina_embeddings_v3", "xlm-roberta"):
        raise ValueError(
            f"config: model_type {data['model_type']!r:.100} is not jina_embeddings_v3"
        )
    fixed = {"hidden_act": "gelu", "type_vocab_size": 1, "emb_pooler": None}
    for key, value in fixed.items():
        if data.get(key, value) != value:
            raise ValueError(f"config: {key} is {data[key]!r:.100}, only {value!r} is supported")
    try:
        config = ModelConfig(
            vocab_size=data["vocab_size"],
            width=data["hidden_size"],
            num_layers=data["num_hidden_layers"],
            num_heads=data["num_attention_heads"],
            ffn_width=data["intermediate_size"],
            max_tokens=data["max_position_embeddings"] - 2,
            layer_norm_eps=_number(data, "layer_norm_eps"),
            rope_base=_rope_base(data),
            tasks=_tasks(data),
            adapter_rank=data.get("lora_rank", 4),
            adapter_alpha=_number({"lora_alpha": 1.0, **data}, "lora_alpha"),
            dims=(data["hidden_size"],),
            sparse_head=data.get("sparse_head", False),
            multi_vector_dim=data.get("multi_dim", 0),
            bos_id=data.get("bos_token_id", 0),
            pad_id=data.get("pad_token_id", 1),
            eos_id=data.get("eos_token_id", 2),
        )
        dims = data.get("matryoshka_dimensions") or [
            dim for dim in MATRYOSHKA_DIMS if dim <= config.width
        ]
        return replace(config, dims=tuple(dims) or (config.width,))
    except KeyError as missing:
        raise ValueError(f"config: the key {missing} is missing") from None
    except TypeError as wrong:
        raise ValueError(f"config: a value has the wrong type ({wrong})") from None


def _rope_base(data: Mapping[str, Any]) -> float:
    if "rotary_emb_base" in data:
        return _number(data, "rotary_emb_base")
    rope = data.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError("config: rope_parameters must be an object")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"config: rope_type {rope['rope_type']!r:.100} is not supported")
    return _number({"rope_theta": 20_000.0, **rope}, "rope_theta")


def _number(data: Mapping[str, Any], key: str) -> float:
    """A number. JSON may write it without a decimal point, or larger than any float."""
    if type(data[key]) not in (int, float) or abs(data[key]) > sys.float_info.max:
        raise ValueError(f"config: {key} is {data[key]!r:.100}, must be a number")
    return float(data[key])


def _tasks(data: Mapping[str, Any]) -> tuple[Task, ...]:
    names = data.get("lora_adaptations", [task.name for task in TASKS])
    prompts = data.get("task_instructions", {task.name: task.prompt for task in TASKS})
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("config: lora_adaptations must be a list of names")
    if not isinstance(prompts, dict) or any(type(prompts.get(n)) is not str for n in names):
        raise ValueError("config: task_instructions must have a string for every adapter")
    return tuple(Task(name, prompts[name]) for name in names)
