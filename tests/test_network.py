"""The PyTorch network by itself: rotary angles, attention, merging, gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyvec.checkpoint import Weights
from polyvec.config import ModelConfig
from polyvec.network import Network, attend, pack_layout, pool, rotary_angles, rotate
from polyvec.pooling import pool_spans


@pytest.fixture
def network(tiny_config: ModelConfig, tiny_weights: Weights) -> Network:
    """The tiny model as a module that a test may change."""
    network = Network(tiny_config)
    network.load_state_dict({name: torch.tensor(w) for name, w in tiny_weights.items()})
    return network


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, lengths and adapter ids of four texts, two of them equally long."""
    lengths = torch.tensor([7, 4, 4, 9])
    ids = torch.randint(4, 90, (24,), generator=torch.Generator().manual_seed(0))
    return ids, lengths, torch.tensor([0, -1, 3, 2])


def test_packed_attention_is_attention_of_each_text_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 3, 3, 1])
    q, k, v = torch.randn(3, 12, 2, 4, generator=generator)
    packed = attend(q, k, v, pack_layout(lengths))
    for part in zip(*(x.split(lengths.tolist()) for x in (packed, q, k, v)), strict=True):
        mixed, *qkv = (x.transpose(0, 1) for x in part)
        torch.testing.assert_close(mixed, F.scaled_dot_product_attention(*qkv))


def test_rotated_products_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, generator=generator)
    products = []
    for shift in (0, 1000):
        angles = rotary_angles(torch.tensor([3 + shift, 8 + shift]), 8, 20_000.0)
        turned_q, turned_k = rotate(q.expand(2, 1, 8), angles), rotate(k.expand(2, 1, 8), angles)
        products.append((turned_q[0] * turned_k[1]).sum())
    torch.testing.assert_close(products[0], products[1], atol=1e-3, rtol=0)


def test_the_base_sets_the_angles_and_position_zero_has_none() -> None:
    positions = torch.tensor([0, 5])
    cos, sin = rotary_angles(positions, 4, 100.0)
    torch.testing.assert_close(cos[1, 0], torch.tensor([5.0, 0.5]).cos())
    torch.testing.assert_close(sin[1, 0], torch.tensor([5.0, 0.5]).sin())
    assert (cos[0] == 1).all()
    assert (sin[0] == 0).all()


def test_unmerging_restores_every_bit(
    network: Network, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    saved = network.merge(1)
    assert any(not torch.equal(before[n], t) for n, t in network.state_dict().items())
    network.unmerge(saved)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_recomputing_activations_changes_no_gradient(
    network: Network, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    gradients = []
    for network.recompute in (False, True):
        network.zero_grad()
        network(*inputs).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_text_trains_its_own_adapter_only(
    network: Network, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    network(*inputs).square().sum().backward()
    touched = network.layers[0].up.lora_b.grad.abs().amax((1, 2)) > 0
    assert touched.tolist() == [True, False, True, True, False]


def test_the_masked_lm_head_is_tied_to_the_token_table(tiny_config: ModelConfig) -> None:
    network = Network(tiny_config, mlm=True)
    hidden = torch.randn(3, tiny_config.width)
    assert network.mlm_logits(hidden).shape == (3, tiny_config.vocab_size)
    network.mlm_logits(hidden).sum().backward()
    assert network.embeddings.word.weight.grad.abs().sum() > 0


def test_both_poolings_agree_on_overlapping_spans(rng: np.random.Generator) -> None:
    hidden = rng.standard_normal((20, 6)).astype(np.float32)
    starts, ends = np.int32([0, 3, 3, 19]), np.int32([20, 9, 4, 20])
    means = pool(*(torch.tensor(x) for x in (hidden, starts.astype(int), ends.astype(int))))
    np.testing.assert_allclose(means.numpy(), pool_spans(hidden, starts, ends), atol=1e-6)
    assert means.dtype == torch.float32
