"""GradCache compared with the gradient of the whole batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyvec.train.gradcache import backward_in_chunks


def spread(vectors: Tensor) -> Tensor:
    """A loss that compares every row with every other row."""
    units = F.normalize(vectors, dim=-1)
    return (units @ units.T / 0.1).logsumexp(-1).mean()


def make_model(dropout: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 4))


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [1, 7, 2, 2], [1] * 12])
def test_the_gradient_is_that_of_the_whole_batch(sizes: list[int]) -> None:
    whole, parts, inputs = make_model(0.0).double(), make_model(0.0).double(), torch.randn(12, 5)
    expected = spread(whole(inputs.double()))
    expected.backward()
    found = backward_in_chunks(parts, inputs.double().split(sizes), spread)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)
    assert len(gradients(parts)) == 4
    for one, two in zip(gradients(parts), gradients(whole), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_both_encodings_drop_the_same_activations() -> None:
    model, inputs, seen = make_model(0.5), torch.randn(6, 5), []

    def encode(chunk: Tensor) -> Tensor:
        seen.append(model(chunk))
        return seen[-1]

    torch.manual_seed(3)
    backward_in_chunks(encode, inputs.split(2), spread)
    without, with_graph = seen[:3], seen[3:]
    assert all(torch.equal(a, b) for a, b in zip(without, with_graph, strict=True))
    # The gradient is that of one graph over these very activations.
    found = [gradient.clone() for gradient in gradients(model)]
    model.zero_grad()
    torch.manual_seed(3)
    seeds = torch.randint(2**62, (3,)).tolist()
    outputs = []
    for seed, chunk in zip(seeds, inputs.split(2), strict=True):
        torch.manual_seed(seed)
        outputs.append(model(chunk))
    spread(torch.cat(outputs)).backward()
    for one, two in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_only_one_chunk_has_a_graph_at_a_time() -> None:
    alive = 0
    most = 0

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            nonlocal alive
            alive -= 1
            return gradient

    model = make_model(0.0)

    def encode(chunk: Tensor) -> Tensor:
        nonlocal alive, most
        if torch.is_grad_enabled():
            alive += 1
            most = max(most, alive)
        return Count.apply(model(chunk))

    backward_in_chunks(encode, torch.randn(8, 5).split(2), spread)
    assert (most, alive) == (1, 0)
