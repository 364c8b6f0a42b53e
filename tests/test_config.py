import pytest

from polyvec.config import ModelConfig, config_from_json, config_to_json
from polyvec.tasks import TASKS, Task

SMALL = ModelConfig(
    vocab_size=30,
    width=16,
    num_layers=2,
    num_heads=2,
    ffn_width=24,
    max_tokens=64,
    layer_norm_eps=1e-12,
    rope_base=10_000.0,
    tasks=(Task("mine", "Find: "), Task("yours")),
    adapter_rank=3,
    adapter_alpha=2.0,
    dims=(8, 16),
    bos_id=4,
    pad_id=5,
    eos_id=6,
    sparse_head=True,
    multi_vector_dim=8,
)


@pytest.mark.parametrize("config", [ModelConfig(), SMALL], ids=["released", "small"])
def test_a_config_survives_json(config: ModelConfig):
    assert config_from_json(config_to_json(config)) == config


def test_the_original_config_is_the_default():
    """The keys of jinaai/jina-embeddings-v3's config.json, which has no model_type."""
    original = {
        "architectures": ["XLMRobertaModel"],
        "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--x.XLMRobertaLoRA"},
        "bos_token_id": 0,
        "emb_pooler": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-05,
        "lora_adaptations": [task.name for task in TASKS],
        "lora_alpha": 1,
        "lora_rank": 4,
        "matryoshka_dimensions": [32, 64, 128, 256, 512, 768, 1024],
        "max_position_embeddings": 8194,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "rotary_emb_base": 20000.0,
        "task_instructions": {task.name: task.prompt for task in TASKS},
        "truncate_dim": None,
        "type_vocab_size": 1,
        "use_flash_attn": True,
        "vocab_size": 250002,
    }
    assert config_from_json(original) == ModelConfig()


def test_a_native_config_has_the_five_tasks_and_the_dims_that_fit():
    native = config_to_json(SMALL)
    for key in ("lora_adaptations", "task_instructions", "lora_rank", "lora_alpha"):
        del native[key]
    del native["matryoshka_dimensions"]
    config = config_from_json(native | {"hidden_size": 64})
    assert config.tasks == TASKS
    assert (config.adapter_rank, config.adapter_alpha) == (4, 1.0)
    assert config.dims == (32, 64)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", 10**12),
        ("vocab_size", True),
        ("vocab_size", 30.0),
        ("hidden_size", "16"),
        ("hidden_size", None),
        ("num_attention_heads", 3),
        ("num_attention_heads", 16),
        ("max_position_embeddings", "x"),
        ("max_position_embeddings", 2),
        ("layer_norm_eps", 0),
        ("layer_norm_eps", "1e-5"),
        ("rotary_emb_base", float("nan")),
        ("rotary_emb_base", float("inf")),
        ("rope_parameters", "default"),
        ("rope_parameters", {"rope_type": "yarn"}),
        ("rope_parameters", {"rope_theta": None}),
        ("lora_adaptations", "mine"),
        ("lora_adaptations", ["mine", "mine"]),
        ("lora_adaptations", ["mine", "unknown"]),
        ("lora_adaptations", [1]),
        ("task_instructions", None),
        ("task_instructions", {"mine": 1, "yours": ""}),
        ("lora_rank", 0),
        ("lora_alpha", -1),
        ("matryoshka_dimensions", [8.0]),
        ("matryoshka_dimensions", [16, 8]),
        ("matryoshka_dimensions", [8, 17]),
        ("matryoshka_dimensions", 5),
        ("pad_token_id", 30),
        ("bos_token_id", "0"),
        ("eos_token_id", [2]),
        ("hidden_act", "relu"),
        ("type_vocab_size", 2),
        ("emb_pooler", "cls"),
        ("model_type", "bert"),
    ],
)
def test_a_wrong_value_is_refused(key: str, value: object):
    with pytest.raises(ValueError, match="config: "):
        config_from_json(config_to_json(SMALL) | {key: value})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "layer_norm_eps"])
def test_a_missing_key_is_named(key: str):
    data = config_to_json(SMALL)
    del data[key]
    with pytest.raises(ValueError, match=key):
        config_from_json(data)
