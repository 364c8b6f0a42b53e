"""Objectives: the gradient is the same in chunks and at once, and almost the same in bf16."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polyvec.config import ModelConfig
from polyvec.network import Network
from polyvec.train.data.tokens import embed_in_documents
from polyvec.train.loop import StepFn
from polyvec.train.masking import Vocabulary, mask_words
from polyvec.train.objectives import (
    alternate,
    contrast,
    distillation,
    embed,
    masked_lm,
    ordering,
    separation,
)

CONFIG = ModelConfig(
    vocab_size=90, width=32, num_layers=2, num_heads=4, ffn_width=64, max_tokens=64, dims=(8, 32)
)
VOCABULARY = Vocabulary(
    starts=np.arange(90) % 3 == 0, special=np.isin(np.arange(90), [0, 1, 2, 3, 89]), mask_id=89
)
RNG = np.random.default_rng(0)
TEXTS = [
    np.concatenate([[0], RNG.integers(4, 89, size=RNG.integers(3, 20)), [2]]).astype(np.int32)
    for _ in range(24)
]
PLAN = [np.arange(8), np.arange(4, 12)]
GROUPS = np.arange(24) // 2

TEACHERS = F.normalize(torch.randn(24, 32, generator=torch.Generator().manual_seed(0))).numpy()
DOCUMENTS, SPANS = embed_in_documents(TEXTS, head=1, parts=[3] * len(TEXTS), seed=0)

Stage = Callable[[Network, int | None], StepFn]

STAGES: dict[str, Stage] = {
    "masked-LM": lambda net, most: masked_lm(net, TEXTS, PLAN, VOCABULARY, chunk_tokens=most),
    "distillation": lambda net, most: distillation(
        net, TEXTS, np.arange(24), TEACHERS, PLAN, bank_size=8, chunk_tokens=most
    ),
    "document distillation": lambda net, most: distillation(
        net, DOCUMENTS, np.arange(24), TEACHERS, PLAN, spans=SPANS, bank_size=8, chunk_tokens=most
    ),
    "pairs": lambda net, most: contrast(
        net,
        TEXTS,
        TEXTS[::-1],
        GROUPS,
        PLAN,
        adapter_ids=(0, 1),
        negatives=[TEXTS[i : i + 3] for i in range(24)],
        num_negatives=2,
        chunk_tokens=most,
    ),
    "spans": lambda net, most: contrast(
        net, TEXTS, DOCUMENTS, GROUPS, PLAN, adapter_ids=(0, 1), spans=SPANS, chunk_tokens=most
    ),
    "ordering": lambda net, most: ordering(
        net,
        TEXTS,
        TEXTS[::-1],
        RNG.random(24).astype(np.float32),
        PLAN,
        adapter_id=4,
        chunk_tokens=most,
    ),
    "separation": lambda net, most: separation(
        net, TEXTS, GROUPS, PLAN, adapter_id=2, chunk_tokens=most
    ),
}


def make_network() -> Network:
    torch.manual_seed(0)
    return Network(CONFIG, mlm=True)


def gradients(network: Network, step_fn: StepFn, step: int = 1) -> tuple[float, dict[str, Tensor]]:
    loss, tokens = step_fn(step)
    assert tokens > 0
    return float(loss), {
        name: p.grad for name, p in network.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("name", STAGES)
def test_a_step_in_chunks_is_the_step_at_once(name: str) -> None:
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
    one, many = make_network().double(), make_network().double()
    loss, whole = gradients(one, STAGES[name](one, None))
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
    same, parts = gradients(many, STAGES[name](many, 40))
    assert same == pytest.approx(loss, abs=1e-6)
    assert whole.keys() == parts.keys()
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=0, atol=1e-6)


def test_masked_lm_is_the_mean_over_masked_tokens_text_by_text() -> None:
    network = make_network()
    step_fn = masked_lm(network, TEXTS, PLAN, VOCABULARY, ratio=0.3, seed=7)
    loss, found = gradients(network, step_fn)
    shown, places = mask_words([TEXTS[i] for i in PLAN[1]], VOCABULARY, ratio=0.3, seed=[7, 1])
    losses = []
    for row, seen, hidden in zip(PLAN[1], shown, places, strict=True):
        states = network(torch.tensor(seen), torch.tensor([len(seen)]), torch.tensor([-1]))
        for place in hidden:
            odds = network.mlm_logits(states[place : place + 1]).log_softmax(-1)[0]
            losses.append(-odds[TEXTS[row][place]])
    expected = torch.stack(losses).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    kept = {name: gradient.clone() for name, gradient in found.items()}
    network.zero_grad()
    expected.backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(kept[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_table_learns_as_input_and_as_output() -> None:
    network = make_network()
    _, found = gradients(network, STAGES["masked-LM"](network, None))
    unread = np.setdiff1d(np.arange(90), np.concatenate([TEXTS[i] for i in PLAN[1]]))
    # A piece that no text has is pushed down where it was not the answer.
    assert found["embeddings.word.weight"][unread].any(-1).all()


def test_bf16_gives_almost_the_same_gradient_for_float32_parameters() -> None:
    one, low = make_network(), make_network()
    low.precision = torch.bfloat16
    # Dense enough a signal that rounding does not decide: the masked-LM loss.
    loss, exact = gradients(one, STAGES["masked-LM"](one, None))
    near, rounded = gradients(low, STAGES["masked-LM"](low, 40))
    assert near == pytest.approx(loss, rel=0.02)
    assert near != loss
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        if gradient.norm() > 1e-3:
            cosine = F.cosine_similarity(gradient.flatten(), rounded[name].flatten(), dim=0)
            assert cosine > 0.99, name


@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_in_chunks_reaches_every_parameter(recompute: bool) -> None:
    network = make_network()
    network.precision, network.recompute = torch.bfloat16, recompute
    _, found = gradients(network, STAGES["pairs"](network, 40))
    # Weights cast without a graph in GradCache's first pass must not serve its second.
    missing = {name for name, _ in network.named_parameters() if "mlm" not in name} - found.keys()
    assert not missing
    assert all(g.any() for name, g in found.items() if name.endswith("weight"))


def test_each_text_is_encoded_with_its_own_adapter() -> None:
    network = make_network()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    rows = [0, -1, 4, 2]
    mixed = embed(network, TEXTS[:4], rows)
    for i, row in enumerate(rows):
        alone = embed(network, [TEXTS[i]], row)[0]
        torch.testing.assert_close(mixed[i], alone, rtol=1e-4, atol=1e-5)


def test_the_embedding_of_a_span_is_the_mean_of_its_tokens_in_the_document() -> None:
    network = make_network()
    vectors = embed(network, DOCUMENTS, 1, SPANS)
    for vector, document, (start, end) in zip(vectors, DOCUMENTS, SPANS, strict=True):
        states = network(torch.tensor(document), torch.tensor([len(document)]), torch.tensor([1]))
        torch.testing.assert_close(vector, states[start:end].mean(0), rtol=1e-4, atol=1e-5)


def test_distillation_trains_the_span_of_a_document() -> None:
    """A larger cosine weight adds the distance of the span, or of the whole document."""
    network = make_network()
    for spans in (SPANS, None):
        step = distillation(network, DOCUMENTS, np.arange(24), TEACHERS, PLAN, spans=spans)
        with torch.no_grad():
            vectors = F.normalize(embed(network, DOCUMENTS, -1, spans), dim=-1)
        wanted = torch.from_numpy(TEACHERS)
        distance = 1 - (vectors * wanted)[PLAN[0]].sum(1).mean()
        other = distillation(
            network, DOCUMENTS, np.arange(24), TEACHERS, PLAN, spans=spans, cosine_weight=3.0
        )
        assert other(0)[0] - step(0)[0] == pytest.approx(float(distance), abs=1e-4)


def test_objectives_alternate_by_weight_and_each_continues_where_it_stopped() -> None:
    calls: list[tuple[str, int]] = []

    def make(name: str):
        def work(step: int) -> tuple[torch.Tensor, int]:
            calls.append((name, step))
            return torch.zeros(()), 1

        return work

    both = alternate([make("a"), make("b")], [3.0, 1.0], steps=400, seed=0)
    for step in range(400):
        both(step)
    for name, share in (("a", 0.75), ("b", 0.25)):
        own = [step for called, step in calls if called == name]
        assert own == [*range(len(own))]
        assert len(own) / 400 == pytest.approx(share, abs=0.05)
    again = [*calls]
    calls.clear()
    both(399)
    assert calls == again[-1:]
