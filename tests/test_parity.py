"""Parity with transformers' `JinaEmbeddingsV3Model` and PEFT, through every layout on disk.

The oracle is built from one dict of random tensors under the original checkpoint's names. Nothing
of polyvec is in its path: this file writes the original layout itself, and transformers and PEFT
write theirs.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file

from polyvec.batch import make_batch
from polyvec.checkpoint import load_checkpoint, save_checkpoint
from polyvec.network import Network
from polyvec.tasks import NO_ADAPTER, TASKS
from tests.conftest import MakeEngine

pytestmark = [
    # transformers adds a second adapter by injecting it, which PEFT warns about.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

NAMES = ["retrieval_query", "retrieval_passage", "separation", "classification", "text_matching"]
ADAPTER_IDS = [NO_ADAPTER, 0, 1, 2, 3, 4]
TEXTS = [[0, 5, 9, 31, 2], [0, 2], [0, *range(3, 29), 2], [0, 7, 7, 8, 2]]
TARGETS = ["word_embeddings", "token_type_embeddings"]
TARGETS += ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "dense"]


@dataclass(frozen=True)
class Shape:
    width: int
    heads: int
    layers: int
    ffn: int
    vocab: int
    rank: int
    alpha: int
    rope_base: float = 20_000.0


SHAPES = [
    Shape(width=32, heads=4, layers=2, ffn=48, vocab=40, rank=4, alpha=1),
    Shape(width=24, heads=2, layers=3, ffn=40, vocab=64, rank=2, alpha=3),
    Shape(width=40, heads=10, layers=1, ffn=96, vocab=50, rank=7, alpha=5, rope_base=10_000.0),
]


def random_tensors(shape: Shape) -> dict[str, torch.Tensor]:
    """A model with five adapters under the original checkpoint's names, without `roberta.`."""
    torch.manual_seed(shape.width)
    d, f, r = shape.width, shape.ffn, shape.rank
    tensors = {"emb_ln.weight": 1 + torch.randn(d) / 5, "emb_ln.bias": torch.randn(d) / 5}

    def embedding(name: str, size: int) -> None:
        weight = f"embeddings.{name}.parametrizations.weight"
        tensors[f"{weight}.original"] = torch.randn(size, d)
        tensors[f"{weight}.0.lora_A"] = torch.randn(5, size, r) / 3
        tensors[f"{weight}.0.lora_B"] = torch.randn(5, r, d)

    def linear(name: str, inputs: int, outputs: int) -> None:
        weight = f"{name}.parametrizations.weight"
        tensors[f"{name}.bias"] = torch.randn(outputs) / 5
        tensors[f"{weight}.original"] = torch.randn(outputs, inputs) * inputs**-0.5
        tensors[f"{weight}.0.lora_A"] = torch.randn(5, r, inputs) * inputs**-0.5
        tensors[f"{weight}.0.lora_B"] = torch.randn(5, outputs, r) / 3

    embedding("word_embeddings", shape.vocab)
    embedding("token_type_embeddings", 1)
    for n in range(shape.layers):
        layer = f"encoder.layers.{n}"
        linear(f"{layer}.mixer.Wqkv", d, 3 * d)
        linear(f"{layer}.mixer.out_proj", d, d)
        linear(f"{layer}.mlp.fc1", d, f)
        linear(f"{layer}.mlp.fc2", f, d)
        for norm in ("norm1", "norm2"):
            tensors[f"{layer}.{norm}.weight"] = 1 + torch.randn(d) / 5
            tensors[f"{layer}.{norm}.bias"] = torch.randn(d) / 5
    linear("pooler.dense", d, d)
    return tensors


def write_original(folder: Path, shape: Shape, tensors: dict[str, torch.Tensor]) -> None:
    """The layout of jinaai/jina-embeddings-v3: no `model_type`, everything in one file."""
    folder.mkdir()
    config = {
        "architectures": ["XLMRobertaModel"],
        "auto_map": {"AutoModel": "somewhere--modeling_lora.XLMRobertaLoRA"},
        "bos_token_id": 0,
        "emb_pooler": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "layer_norm_eps": 1e-05,
        "load_trained_adapters": True,
        "lora_adaptations": [task.name for task in TASKS],
        "lora_alpha": shape.alpha,
        "lora_rank": shape.rank,
        "matryoshka_dimensions": [8, shape.width],
        "max_position_embeddings": 66,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "rotary_emb_base": shape.rope_base,
        "task_instructions": {task.name: task.prompt for task in TASKS},
        "torch_dtype": "bfloat16",
        "type_vocab_size": 1,
        "vocab_size": shape.vocab,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({f"roberta.{k}": v for k, v in tensors.items()}, folder / "model.safetensors")


def build_base(shape: Shape, tensors: dict[str, torch.Tensor]) -> Any:
    """transformers' model with the weights of `tensors`, no adapters."""
    config = transformers.JinaEmbeddingsV3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn,
        max_position_embeddings=66,
        rope_parameters={"rope_theta": shape.rope_base, "rope_type": "default"},
    )
    base = transformers.JinaEmbeddingsV3Model(config).eval()
    state = {}
    for name, tensor in tensors.items():
        if "lora" in name:
            continue
        name = name.replace(".parametrizations.weight.original", ".weight")
        name = name.replace("emb_ln", "embeddings.LayerNorm").replace("encoder.layers", "layers")
        name = name.replace("mixer.out_proj", "self_attn.o_proj")
        name = name.replace("norm1", "post_attention_layernorm")
        name = name.replace("norm2", "post_mlp_layernorm")
        if "mixer.Wqkv" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("mixer.Wqkv", f"self_attn.{letter}_proj")] = part.clone()
        else:
            state[name] = tensor.clone()
    base.load_state_dict(state, strict=True)
    return base


def add_adapters(base: Any, shape: Shape) -> Any:
    """A PEFT model with the five adapters, all zero or random as PEFT leaves them."""
    settings = peft.LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=TARGETS)
    model = peft.get_peft_model(base, settings, adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.add_adapter(name, settings)
    return model.eval()


def randomise_adapters(model: Any) -> None:
    """Fill every adapter with numbers of its own: q, k and v share nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.2)


def fill_adapters(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put the adapters of `tensors` into the PEFT model: q, k and v share A."""
    modules = dict(model.base_model.model.named_modules())
    with torch.no_grad():
        for key in [key for key in tensors if key.endswith("lora_A")]:
            name = key.removesuffix(".parametrizations.weight.0.lora_A")
            a, b = tensors[key], tensors[key.removesuffix("A") + "B"]
            name = name.replace("encoder.layers", "layers").replace(
                "mixer.out_proj", "self_attn.o_proj"
            )
            letters = "qkv" if "Wqkv" in name else " "
            for letter, part in zip(letters, b.chunk(len(letters), dim=1), strict=True):
                module = modules[name.replace("mixer.Wqkv", f"self_attn.{letter}_proj")]
                for adapter_id, adapter in enumerate(NAMES):
                    if name.startswith("embeddings"):
                        module.lora_embedding_A[adapter].copy_(a[adapter_id].T)
                        module.lora_embedding_B[adapter].copy_(b[adapter_id].T)
                    else:
                        module.lora_A[adapter].weight.copy_(a[adapter_id])
                        module.lora_B[adapter].weight.copy_(part[adapter_id])


@torch.no_grad()
def read_all(model: Any) -> np.ndarray:
    """The hidden states of TEXTS in PEFT's model: without adapter, then with each, end to end."""
    parts = []
    for adapter_id in ADAPTER_IDS:
        if adapter_id == NO_ADAPTER:
            with model.disable_adapter():
                parts += [model(torch.tensor([text])).last_hidden_state[0] for text in TEXTS]
        else:
            model.set_adapter(NAMES[adapter_id])
            parts += [model(torch.tensor([text])).last_hidden_state[0] for text in TEXTS]
    return torch.cat(parts).numpy()


MIXED = make_batch(
    TEXTS * len(ADAPTER_IDS), [adapter_id for adapter_id in ADAPTER_IDS for _ in TEXTS]
)
"""Every text under every adapter and none, all in one batch."""


def assert_same(make_engine: MakeEngine, folder: Path, expected: np.ndarray) -> None:
    states = make_engine(*load_checkpoint(folder)).hidden(MIXED)
    np.testing.assert_allclose(states, expected, atol=1e-5, rtol=0)


@dataclass(frozen=True)
class Case:
    """A random model: its tensors, transformers' and PEFT's model, and their hidden states."""

    shape: Shape
    tensors: dict[str, torch.Tensor]
    oracle: Any
    hidden: np.ndarray
    folder: Path
    """A folder with the model three times: `original`, `native`, and `saved` by polyvec."""


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"width{shape.width}")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    shape, folder = request.param, tmp_path_factory.mktemp("case")
    tensors = random_tensors(shape)
    oracle = add_adapters(build_base(shape, tensors), shape)
    fill_adapters(oracle, tensors)
    write_original(folder / "original", shape, tensors)
    build_base(shape, tensors).save_pretrained(folder / "native")
    oracle.save_pretrained(folder / "native")
    # Heads that transformers has never heard of must not disturb it.
    config, weights = load_checkpoint(folder / "original")
    config = replace(config, sparse_head=True, multi_vector_dim=3)
    heads = {"sparse": (1, shape.width), "multi_vector": (3, shape.width)}
    weights |= {f"{name}.weight": np.ones(size, np.float32) for name, size in heads.items()}
    weights |= {f"{name}.bias": np.ones(size[0], np.float32) for name, size in heads.items()}
    save_checkpoint(folder / "saved", config, weights)
    return Case(shape, tensors, oracle, read_all(oracle), folder)


def test_the_adapters_of_the_oracle_differ(case: Case):
    states = np.split(case.hidden, len(ADAPTER_IDS))
    for i, left in enumerate(states):
        for right in states[:i]:
            assert np.abs(left - right).max() > 0.1


@pytest.mark.parametrize("layout", ["original", "native", "saved"])
def test_every_layout_gives_the_same_hidden_states(
    make_engine: MakeEngine, case: Case, layout: str
):
    assert_same(make_engine, case.folder / layout, case.hidden)


@pytest.mark.parametrize("layout", ["original", "native", "saved"])
def test_every_layout_gives_the_same_config(case: Case, layout: str):
    config, _ = load_checkpoint(case.folder / layout)
    assert config.tasks == TASKS
    # q, k and v share A, so that they need no more than the adapter's own rank.
    assert (config.adapter_rank, config.adapter_alpha) == (case.shape.rank, case.shape.alpha)
    assert config.rope_base == case.shape.rope_base


def test_one_adapter_a_batch_gives_the_same_hidden_states(make_engine: MakeEngine, case: Case):
    config, weights = load_checkpoint(case.folder / "native")
    mixing = make_engine(config, weights)
    for adapter_id, expected in zip(
        ADAPTER_IDS, np.split(case.hidden, len(ADAPTER_IDS)), strict=True
    ):
        batch = make_batch(TEXTS, [adapter_id] * len(TEXTS))
        np.testing.assert_allclose(mixing.hidden(batch), expected, atol=1e-5, rtol=0)
        if adapter_id != NO_ADAPTER:
            merged = make_engine(config, weights, merge_adapter=adapter_id)
            np.testing.assert_allclose(merged.hidden(batch), expected, atol=1e-5, rtol=0)


def test_transformers_and_peft_read_what_polyvec_saves(case: Case):
    saved = case.folder / "saved"
    model, info = transformers.JinaEmbeddingsV3Model.from_pretrained(
        saved, output_loading_info=True
    )
    assert not any(info.values()), info
    for name in NAMES:
        info = model.load_adapter(str(saved), adapter_name=name, adapter_kwargs={"subfolder": name})
        # transformers also lists the adapters that were loaded before as missing.
        assert not [key for key in info.missing_keys if name in key]
        assert not info.unexpected_keys
        assert not info.mismatched_keys
    ours, theirs = model.state_dict(), case.oracle.base_model.model.state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    model.set_adapter(NAMES[3])
    with torch.no_grad():
        states = torch.cat([model(torch.tensor([t])).last_hidden_state[0] for t in TEXTS])
    expected = np.split(case.hidden, len(ADAPTER_IDS))[ADAPTER_IDS.index(3)]
    np.testing.assert_allclose(states.numpy(), expected, atol=1e-6, rtol=0)


def test_peft_s_own_loader_reads_what_polyvec_saves(case: Case):
    saved = case.folder / "saved"
    base = transformers.JinaEmbeddingsV3Model.from_pretrained(saved)
    model = peft.PeftModel.from_pretrained(base, saved / NAMES[0], adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.load_adapter(saved / name, adapter_name=name)
    np.testing.assert_allclose(read_all(model.eval()), case.hidden, atol=1e-6, rtol=0)


def test_adapters_whose_q_k_and_v_share_nothing_are_read(make_engine: MakeEngine, tmp_path: Path):
    shape = SHAPES[1]
    base, oracle = (build_base(shape, random_tensors(shape)) for _ in range(2))
    oracle = add_adapters(oracle, shape)
    randomise_adapters(oracle)
    base.save_pretrained(tmp_path)
    oracle.save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path)[0].adapter_rank == 3 * shape.rank
    assert_same(make_engine, tmp_path, read_all(oracle))


def test_adapters_of_different_rank_scale_and_reach_share_a_bank(
    make_engine: MakeEngine, tmp_path: Path
):
    shape = SHAPES[0]
    kinds: list[dict[str, Any]] = [
        {"r": 2, "lora_alpha": 6, "target_modules": TARGETS},
        {"r": 5, "lora_alpha": 1, "target_modules": TARGETS},
        {"r": 3, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]},
        {"r": 4, "lora_alpha": 2, "target_modules": TARGETS, "use_rslora": True},
        {"r": 1, "lora_alpha": 1, "target_modules": ["fc2", "word_embeddings"]},
    ]
    base, oracle = (build_base(shape, random_tensors(shape)) for _ in range(2))
    oracle = peft.get_peft_model(oracle, peft.LoraConfig(**kinds[0]), adapter_name=NAMES[0])
    for name, kind in zip(NAMES[1:], kinds[1:], strict=True):
        oracle.add_adapter(name, peft.LoraConfig(**kind))
    randomise_adapters(oracle)
    base.save_pretrained(tmp_path)
    oracle.save_pretrained(tmp_path)
    assert_same(make_engine, tmp_path, read_all(oracle.eval()))


def test_a_sharded_model_is_read(make_engine: MakeEngine, case: Case, tmp_path: Path):
    build_base(case.shape, case.tensors).save_pretrained(tmp_path, max_shard_size="10KB")
    case.oracle.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(make_engine, tmp_path, case.hidden)


def test_names_as_transformers_has_them_in_memory_are_read(
    make_engine: MakeEngine, case: Case, tmp_path: Path
):
    shutil.copytree(case.folder / "native", tmp_path, dirs_exist_ok=True)
    state = build_base(case.shape, case.tensors).state_dict()
    save_file({f"roberta.{name}": state[name] for name in state}, tmp_path / "model.safetensors")
    assert_same(make_engine, tmp_path, case.hidden)


def test_a_model_without_adapters_has_no_tasks(make_engine: MakeEngine, tmp_path: Path):
    shape = SHAPES[0]
    base = build_base(shape, random_tensors(shape))
    base.save_pretrained(tmp_path)
    config, weights = load_checkpoint(tmp_path)
    assert config.tasks == ()
    batch = make_batch(TEXTS, [NO_ADAPTER] * len(TEXTS))
    with torch.no_grad():
        expected = torch.cat([base(torch.tensor([t])).last_hidden_state[0] for t in TEXTS])
    states = make_engine(config, weights).hidden(batch)
    np.testing.assert_allclose(states, expected, atol=1e-5, rtol=0)


def test_the_masked_language_model_gives_the_same_logits(tmp_path: Path):
    config = build_base(SHAPES[0], random_tensors(SHAPES[0])).config
    torch.manual_seed(0)
    model = transformers.JinaEmbeddingsV3ForMaskedLM(config).eval()
    with torch.no_grad():
        model.lm_head.bias.normal_()
        model.lm_head.layer_norm.weight.normal_()
    model.save_pretrained(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", *load_checkpoint(tmp_path / "theirs"))
    again, info = transformers.JinaEmbeddingsV3ForMaskedLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    ours, weights = load_checkpoint(tmp_path / "ours")
    network = Network(ours, mlm=True).eval()
    network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
    text = torch.tensor(TEXTS[2])
    with torch.no_grad():
        hidden = network(text, torch.tensor([len(text)]), torch.tensor([NO_ADAPTER]))
        logits = network.mlm_logits(hidden)
        torch.testing.assert_close(logits, model(text[None]).logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits, again(text[None]).logits[0], atol=1e-5, rtol=0)
