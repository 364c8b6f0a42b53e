"""The teacher compared with transformers, and the functions that prepare a start."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from polyvec.config import ModelConfig
from polyvec.network import Network, pool
from polyvec.train.init.bert import align_rotary, order_dims, permute_width, read_teacher

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "sleeps", "under", "snow")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with its tokenizer, written by transformers."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    core = tokenizers.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    core.save(str(folder / "tokenizer.json"))
    return folder


def test_the_teacher_embeds_as_transformers_does(bert: Path) -> None:
    texts = ["the fox sleeps", "snow", "the fox sleeps under the snow"]
    teacher = read_teacher(bert)
    reference = BertModel.from_pretrained(bert).eval()
    for text, found in zip(texts, teacher.encode(texts, progress=False), strict=True):
        ids = torch.tensor([teacher.tokenizer.encode(text).ids])
        with torch.inference_mode():
            expected = F.normalize(reference(ids).last_hidden_state.mean(1), dim=-1)[0]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_another_architecture_is_refused(bert: Path, tmp_path: Path) -> None:
    shape = json.loads((bert / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**shape, "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="not a BERT with GELU"):
        read_teacher(tmp_path)


def random_network(*, base: float = 10_000.0) -> Network:
    """A small network whose weights are large enough for attention to matter."""
    config = ModelConfig(
        vocab_size=50, width=16, num_layers=2, num_heads=2, ffn_width=32, dims=(16,), rope_base=base
    )
    generator = torch.Generator().manual_seed(1)
    network = Network(config).requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        if "lora" in name:
            parameter.zero_()
    return network


def embed(network: Network, texts: list[list[int]]) -> torch.Tensor:
    """Mean hidden states, one text at a time."""
    found = []
    for ids in texts:
        size = torch.tensor([len(ids)])
        hidden = network(torch.tensor(ids), size, torch.tensor([-1]))
        found.append(pool(hidden, torch.tensor([0]), size))
    return torch.cat(found)


def still(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove rotary positions."""
    monkeypatch.setattr("polyvec.network.rotate", lambda x, rotation: x)


def test_aligned_heads_are_equal_without_rotation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(50, size=9).tolist() for _ in range(40)]
    network = random_network()
    with monkeypatch.context() as patch:
        still(network, patch)
        before = embed(network, texts)
        align_rotary(network, texts)
        torch.testing.assert_close(embed(network, texts), before, atol=1e-4, rtol=1e-4)


def test_aligned_heads_change_less_with_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(50, size=9).tolist() for _ in range(40)]
    network = random_network()
    with monkeypatch.context() as patch:
        still(network, patch)
        free = embed(network, texts)
    plain = (embed(network, texts) - free).norm()
    align_rotary(network, texts)
    assert (embed(network, texts) - free).norm() < 0.8 * plain


def test_reordered_dimensions_reorder_the_outputs() -> None:
    texts = [[0, 7, 9, 2], [0, 30, 2]]
    network = random_network()
    before = embed(network, texts)
    order = np.random.default_rng(0).permutation(16)
    permute_width(network, order)
    torch.testing.assert_close(embed(network, texts), before[:, order], atol=1e-5, rtol=1e-5)


def test_the_first_dimensions_are_the_most_informative() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 12)).astype(np.float32)
    vectors[:, [3, 8]] *= 6
    vectors[:, 5] = 0
    order = order_dims(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert sorted(order.tolist()) == list(range(12))
    assert {*order[:2]} == {3, 8}
    assert order[-1] == 5
