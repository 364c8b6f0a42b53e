"""Training of the heads: scores equal those of the encoder, and losses equal their loops."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyvec import Encoder, ModelConfig, maxsim
from polyvec.checkpoint import Weights
from polyvec.engines.torch import TorchEngine
from polyvec.network import Network
from polyvec.tokenizer import Tokenizer
from polyvec.train.head_objectives import run_heads, score_outputs, self_distil, self_distillation

HARD = -1


def load(config: ModelConfig, weights: Weights) -> Network:
    network = Network(config)
    network.load_state_dict({name: torch.tensor(weights[name]) for name in network.state_dict()})
    return network


@pytest.fixture
def network(headed_config: ModelConfig, headed_weights: Weights) -> Network:
    """The tiny model with heads and large weights."""
    return load(headed_config, headed_weights)


@pytest.fixture
def tokenizer(tiny_model: Path, headed_config: ModelConfig) -> Tokenizer:
    return Tokenizer.load(tiny_model, headed_config.max_tokens)


def test_training_and_encoding_compute_the_same_scores(
    network: Network, headed_config: ModelConfig, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    documents = [*sentences, "fox <unk> fox </s>", "dog " * 50]
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    chosen = {n: w for n, w in weights.items() if n.startswith(("sparse.", "multi_vector."))}
    encoder = Encoder(headed_config, tokenizer, TorchEngine(headed_config, weights), chosen)
    left, right = (
        encoder.encode_all(texts, task=task)
        for texts, task in ((sentences, "retrieval.query"), (documents, "retrieval.passage"))
    )
    signals = []
    for texts, row in ((sentences, 0), (documents, 1)):
        tokens = tokenizer.encode(texts, [headed_config.tasks[row].prompt] * len(texts))
        ids, num_prompt = [text.ids for text in tokens], [text.num_prompt for text in tokens]
        special = tokenizer.special_ids
        signals.append(run_heads(network, ids, row, num_prompt=num_prompt, ignored=special))
    with torch.no_grad():
        scores = {name: part.numpy() for name, part in score_outputs(network, *signals).items()}
    assert left.dense is not None and left.sparse is not None and left.multi_vector is not None
    assert right.dense is not None and right.sparse is not None and right.multi_vector is not None
    np.testing.assert_allclose(scores["dense"], left.dense @ right.dense.T, atol=1e-5)
    np.testing.assert_allclose(
        scores["sparse"], left.sparse.dot(right.sparse), rtol=1e-5, atol=1e-5
    )
    expected = np.stack([maxsim(query, right.multi_vector) for query in left.multi_vector])
    np.testing.assert_allclose(scores["multi_vector"], expected, atol=1e-5)
    assert scores["sparse"].any()


def test_self_distillation_is_its_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, generator=generator).requires_grad_()
    teacher = torch.randn(3, 5, generator=generator).requires_grad_()
    expected, t = 0.0, 0.7
    for i in range(3):
        mine = [math.exp(scores[i, j].item() / t) for j in range(5)]
        yours = [math.exp(teacher[i, j].item() / t) for j in range(5)]
        for j in range(5):
            expected -= yours[j] / sum(yours) * math.log(mine[j] / sum(mine)) / 3
    found = self_distil(scores, teacher, temperature=t)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert scores.grad is not None and scores.grad.any()
    assert teacher.grad is None


def pairs(tokenizer: Tokenizer, sentences: list[str]) -> tuple[list, list]:
    """Pairs of the start and the end of a sentence, which have some words in common."""
    halves = [[s[: 3 * len(s) // 4] for s in sentences], [s[len(s) // 4 :] for s in sentences]]
    one, two = (tokenizer.encode(half, [""] * len(half)) for half in halves)
    return [text.ids for text in one], [text.ids for text in two]


def freeze(network: Network) -> list[str]:
    """Freeze all parameters except the heads; return the names of the heads."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(("sparse.", "multi_vector.")))
    return [name for name, p in network.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("num_hard", [0, 2])
def test_the_objective_is_its_double_loop(
    network: Network, tokenizer: Tokenizer, sentences: list[str], num_hard: int
) -> None:
    freeze(network)
    queries, documents = pairs(tokenizer, sentences)
    groups, rows, t = np.array([0, 1, 2, 1, 3, 4]), np.arange(5), 0.3
    hard = [[documents[5]] if i < num_hard else [] for i in range(6)]
    stage = self_distillation(
        network,
        queries,
        documents,
        groups,
        [rows],
        ignored=tokenizer.special_ids,
        negatives=hard,
        temperature=t,
    )
    loss, num_tokens = stage(0)
    right = documents[:5] + [documents[5]] * num_hard
    assert num_tokens == sum(map(len, queries[:5] + right))
    asked, answers = (
        run_heads(network, texts, -1, num_prompt=1, ignored=tokenizer.special_ids)
        for texts in (queries[:5], right)
    )
    with torch.no_grad():
        scores = {k: (s / t).tolist() for k, s in score_outputs(network, asked, answers).items()}
    owners, total = [0, 1, 2, 1, 3] + [HARD] * num_hard, 0.0
    columns = range(len(owners))
    for kind in ("sparse", "multi_vector"):
        s = scores[kind]
        for i in range(5):
            sums = [scores["dense"][i][j] + 0.3 * scores["sparse"][i][j] for j in columns]
            taught = [math.exp(sums[j] + scores["multi_vector"][i][j]) for j in columns]
            norm = sum(math.exp(s[i][j]) for j in columns)
            for j in columns:
                total -= taught[j] / sum(taught) * math.log(math.exp(s[i][j]) / norm) / 5
            seen = [j for j in columns if j == i or owners[j] != owners[i]]
            answer = math.exp(s[i][i])
            total -= math.log(answer / sum(math.exp(s[i][j]) for j in seen)) / 10
            seen = [j for j in range(5) if j == i or owners[j] != owners[i]]
            total -= math.log(answer / sum(math.exp(s[j][i]) for j in seen)) / 10
    assert loss.item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kinds", [("sparse",), ("multi_vector",), ("sparse", "multi_vector")])
def test_heads_learn_and_a_frozen_backbone_does_not(
    headed_config: ModelConfig,
    headed_weights: Weights,
    tokenizer: Tokenizer,
    sentences: list[str],
    kinds: tuple[str, ...],
) -> None:
    multi_vector_dim = 12 if "multi_vector" in kinds else 0
    config = replace(
        headed_config, sparse_head="sparse" in kinds, multi_vector_dim=multi_vector_dim
    )
    network = load(config, headed_weights)
    names = freeze(network)
    assert {name.split(".")[0] for name in names} == set(kinds)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    queries, documents = pairs(tokenizer, sentences)
    step_fn = self_distillation(
        network,
        queries,
        documents,
        np.arange(6),
        [np.arange(6)] * 40,
        ignored=tokenizer.special_ids,
    )
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        losses.append(step_fn(step)[0].item())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    for name, tensor in network.state_dict().items():
        assert torch.equal(before[name], tensor) == (name not in names), name


def test_an_unfrozen_backbone_learns_too(
    network: Network, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    queries, documents = pairs(tokenizer, sentences)
    special = tokenizer.special_ids
    self_distillation(network, queries, documents, np.arange(6), [np.arange(6)], ignored=special)(0)
    assert network.sparse is not None and network.sparse.weight.grad is not None
    gradient = network.layers[0].get_parameter("qkv.weight").grad
    assert gradient is not None and gradient.any()


def test_without_heads_there_is_nothing_to_train(tiny_config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="set sparse_head or multi_vector_dim"):
        self_distillation(Network(tiny_config), [], [], np.arange(0), [], ignored=[])
