"""What a step computes: the same gradient in chunks, by one reading or many, in bf16 nearly."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polyvec.config import ModelConfig
from polyvec.network import Network
from polyvec.train.data.pairs import bury
from polyvec.train.loop import Work
from polyvec.train.masking import Vocabulary, hide_words
from polyvec.train.objectives import (
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
DOCUMENTS, SPANS = bury(TEXTS, head=1, parts=[3] * len(TEXTS), seed=0)

Stage = Callable[[Network, int | None], Work]

STAGES: dict[str, Stage] = {
    "masked-LM": lambda net, most: masked_lm(net, TEXTS, PLAN, VOCABULARY, max_tokens=most),
    "distillation": lambda net, most: distillation(
        net, TEXTS, np.arange(24), TEACHERS, PLAN, bank_size=8, max_tokens=most
    ),
    "buried distillation": lambda net, most: distillation(
        net, DOCUMENTS, np.arange(24), TEACHERS, PLAN, spans=SPANS, bank_size=8, max_tokens=most
    ),
    "pairs": lambda net, most: contrast(
        net,
        TEXTS,
        TEXTS[::-1],
        GROUPS,
        PLAN,
        rows=(0, 1),
        negatives=[TEXTS[i : i + 3] for i in range(24)],
        num_negatives=2,
        max_tokens=most,
    ),
    "spans": lambda net, most: contrast(
        net, TEXTS, DOCUMENTS, GROUPS, PLAN, rows=(0, 1), spans=SPANS, max_tokens=most
    ),
    "ordering": lambda net, most: ordering(
        net,
        TEXTS,
        TEXTS[::-1],
        RNG.random(24).astype(np.float32),
        PLAN,
        row=4,
        max_tokens=most,
    ),
    "separation": lambda net, most: separation(net, TEXTS, GROUPS, PLAN, row=2, max_tokens=most),
}


def make_network() -> Network:
    torch.manual_seed(0)
    return Network(CONFIG, mlm=True)


def gradients(network: Network, work: Work, step: int = 1) -> tuple[float, dict[str, Tensor]]:
    loss, tokens = work(step)
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


def test_masked_lm_is_the_mean_over_hidden_tokens_text_by_text() -> None:
    network = make_network()
    work = masked_lm(network, TEXTS, PLAN, VOCABULARY, ratio=0.3, seed=7)
    loss, found = gradients(network, work)
    shown, places = hide_words([TEXTS[i] for i in PLAN[1]], VOCABULARY, ratio=0.3, seed=[7, 1])
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


def test_bf16_gives_nearly_the_same_gradient_and_float32_parameters() -> None:
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


def test_each_text_is_read_by_its_own_adapter() -> None:
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


def test_a_span_s_vector_is_the_mean_of_its_tokens_in_the_document() -> None:
    network = make_network()
    vectors = embed(network, DOCUMENTS, 1, SPANS)
    for vector, document, (start, end) in zip(vectors, DOCUMENTS, SPANS, strict=True):
        states = network(torch.tensor(document), torch.tensor([len(document)]), torch.tensor([1]))
        torch.testing.assert_close(vector, states[start:end].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_buried_passage_is_whole_in_its_span(parts: int) -> None:
    documents, spans = bury(TEXTS, head=3, parts=[parts] * len(TEXTS), seed=parts)
    places = set()
    for text, document, (start, end) in zip(TEXTS, documents, spans, strict=True):
        found = document[start:end].tolist()
        assert document[:3].tolist() == text[:3].tolist()
        assert document[-1] == 2 and (document == 2).sum() == 1
        first, last = start == 0, end == len(document)
        assert found == text[0 if first else 3 : None if last else -1].tolist()
        places.add((first, last))
    assert len(places) == {1: 1, 2: 2, 5: 3}[parts]


def test_a_passage_is_buried_among_as_many_others_as_it_is_told_and_those_alone() -> None:
    others = [np.array([0, piece, 2], np.int32) for piece in (200, 201)]
    parts = [1 + number % 4 for number in range(len(TEXTS))]
    for count, document in zip(
        parts, bury(TEXTS, head=1, parts=parts, seed=0, among=others)[0], strict=True
    ):
        assert (document >= 200).sum() == count - 1


def test_distillation_pulls_a_text_s_own_part_of_a_document() -> None:
    """What more pull adds to the loss is the distance of that part, or of the whole document."""
    network = make_network()
    for spans in (SPANS, None):
        step = distillation(network, DOCUMENTS, np.arange(24), TEACHERS, PLAN, spans=spans)
        with torch.no_grad():
            vectors = F.normalize(embed(network, DOCUMENTS, -1, spans), dim=-1)
        wanted = torch.from_numpy(TEACHERS)
        distance = 1 - (vectors * wanted)[PLAN[0]].sum(1).mean()
        other = distillation(
            network, DOCUMENTS, np.arange(24), TEACHERS, PLAN, spans=spans, pull=3.0
        )
        assert other(0)[0] - step(0)[0] == pytest.approx(float(distance), abs=1e-4)
