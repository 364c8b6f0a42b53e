"""Contrastive batches larger than memory (GradCache, Gao et al. 2021, arXiv:2101.06983).

1. Encode every chunk without a graph.
2. Take the loss's gradient at the embeddings, all of them together.
3. Encode again, a chunk at a time, and push that chunk's part of the gradient through.

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
    hold: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Float[Tensor, ""]:
    """Add the gradient of loss(encode(all chunks)) to the parameters; return the loss, detached.

    Memory holds one chunk's graph at a time. Each chunk has a seed of its own, drawn from torch's
    generator, so that the two encodings drop the same activations. `hold` surrounds every chunk
    but the last: where several processes train, none need exchange gradients before that.
    A single chunk is encoded once.
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
    assert leaves.grad is not None, "the loss reads the embeddings"
    gradients = leaves.grad.split([len(part) for part in parts])
    for number, gradient in enumerate(gradients):
        with nullcontext() if number == len(chunks) - 1 else hold():
            encode_seeded(number).backward(gradient)
    return value.detach()
