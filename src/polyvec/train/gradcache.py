"""Contrastive batches larger than memory (GradCache, Gao et al. 2021, arXiv:2101.06983).

1. Encode every chunk without a graph.
2. Compute the gradient of the loss with respect to all embeddings together.
3. Encode every chunk again, and backpropagate its part of the gradient.

Axes in this file: N texts, D width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Chunk = TypeVar("Chunk")


def backward_in_chunks(
    encode: Callable[[Chunk], Float[Tensor, "_chunk D"]],
    chunks: Sequence[Chunk],
    loss: Callable[[Float[Tensor, "N D"]], Float[Tensor, ""]],
    *,
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Float[Tensor, ""]:
    """Add the gradient of loss(encode(all chunks)) to the parameters; return the loss, detached.

    Memory holds the graph of one chunk at a time. Each chunk has its own seed, drawn from torch's
    generator, so that both encodings drop the same activations. `no_sync` surrounds every chunk
    but the last: several processes exchange gradients only once. A single chunk is encoded once.
    """
    if len(chunks) == 1:
        value = loss(encode(chunks[0]))
        value.backward()
        return value.detach()
    seeds = torch.randint(2**62, (len(chunks),)).tolist()

    def encode_seeded(number: int) -> Tensor:
        torch.manual_seed(seeds[number])
        return encode(chunks[number])

    with torch.no_grad():
        parts = [encode_seeded(number) for number in range(len(chunks))]
    leaves = torch.cat(parts).requires_grad_()
    value = loss(leaves)
    value.backward()
    assert leaves.grad is not None, "the loss depends on the embeddings"
    gradients = leaves.grad.split([len(part) for part in parts])
    for number, gradient in enumerate(gradients):
        with nullcontext() if number == len(chunks) - 1 else no_sync():
            encode_seeded(number).backward(gradient)
    return value.detach()
