"""Training in several processes that `torchrun` starts. In a single process, nothing here acts.

The contract is that of PyTorch's DistributedDataParallel: every process adds the gradient of its
own loss, and the optimizer receives the mean of all processes. All processes have the same plan,
which holds the rows of the whole step, and each encodes its shard of the step's texts
(`shard_texts`).

Axes in this file: N rows, D width.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from polyvec.network import Network

Model = Network | DistributedDataParallel
"""A network, alone or wrapped by PyTorch. `fully_shard` does not wrap it."""


def num_processes() -> int:
    """Number of processes in this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0. Only process 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if any; yield the device of this process."""
    cuda = torch.cuda.is_available()
    if not dist.is_torchelastic_launched():
        yield torch.device("cuda" if cuda else "cpu")
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        yield device
        # A process that ends while another still reads from it would break the other's connection.
        dist.barrier()
    finally:
        # What DistributedDataParallel holds of the group must go first: gloo's threads abort the
        # process if they are still running when Python ends.
        gc.collect()
        dist.destroy_process_group()


def distribute(network: Network, how: Literal["ddp", "fsdp"]) -> Model:
    """Prepare the network for several processes; a single process gets the network itself.

    With "ddp" every process holds all weights. With "fsdp" every process holds a part of each
    weight and of the optimizer's state, for models that do not fit on one device. Call
    `requires_grad_` before this function and `named_parameters` after it: fully sharded parameters
    are new objects.
    """
    if num_processes() == 1:
        return network
    if how == "ddp":
        return DistributedDataParallel(network)
    # This import takes two seconds, here and below; a single process must not wait for it.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for layer in network.layers:
        fully_shard(layer)
    fully_shard(network)
    if network.mlm is not None:
        register_fsdp_forward_method(network, "mlm_logits")
    return network


def unwrap(network: Model) -> Network:
    """The network without PyTorch's wrapper."""
    if isinstance(network, DistributedDataParallel):
        assert isinstance(network.module, Network)
        return network.module
    return network


def no_sync(network: Model) -> Callable[[], AbstractContextManager[object]]:
    """A context in which backward passes exchange no gradients.

    The first backward pass outside the context exchanges all of them.
    """
    if num_processes() == 1:
        return nullcontext
    if isinstance(network, DistributedDataParallel):
        return network.no_sync
    return lambda: _no_sync_sharded(network)


@contextmanager
def _no_sync_sharded(network: Network) -> Iterator[None]:
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(network, FSDPModule), "several processes train the result of `distribute`"
    network.set_requires_gradient_sync(False)
    yield
    network.set_requires_gradient_sync(True)


def shard_texts(
    lengths: Sequence[int], chunk_tokens: int | None
) -> list[list[Int[np.ndarray, " _"]]]:
    """The chunks of every process. A chunk is the positions of some texts, shortest first.

    A chunk has about `chunk_tokens` tokens; with None every process has one chunk. All processes
    have the same number of chunks, because each waits for the others after every chunk. All
    chunks have texts of all lengths, so the processes finish at about the same time. Raises
    ValueError if there are fewer texts than processes.

    >>> shards = shard_texts([3, 9, 5, 1], chunk_tokens=9)
    >>> [[chunk.tolist() for chunk in chunks] for chunks in shards]
    [[[3, 2], [0, 1]]]
    """
    count = num_processes()
    if len(lengths) < count:
        raise ValueError(
            f"a step of {len(lengths)} texts is too small for {count} processes; "
            "use larger steps or fewer processes"
        )
    order = np.argsort(lengths, kind="stable")
    each = 1 if chunk_tokens is None else -(-sum(lengths) // (chunk_tokens * count))
    pieces = count * min(each, len(lengths) // count)
    return [[order[i::pieces] for i in range(first, pieces, count)] for first in range(count)]


class _AllGather(torch.autograd.Function):
    """Stack equally many rows of every process; sum their gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(num_processes())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[rank()]


def all_gather(own: Float[Tensor, "n D"], counts: Sequence[int]) -> Float[Tensor, "N D"]:
    """The rows of all processes, process after process, with their gradient.

    Process i has `counts[i]` rows. Every process then computes the loss of the whole step, with
    the texts of all processes as negatives. The gradient of a row is the sum over all processes'
    losses, so that the mean over processes, which PyTorch takes next, is the step's gradient.
    """
    if len(counts) == 1:
        return own
    padded = torch.cat([own, own.new_zeros(max(counts) - len(own), own.shape[1])])
    parts = _AllGather.apply(padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_reduce_sum(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The sum of a number over all processes, without a gradient."""
    if num_processes() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def barrier() -> None:
    """Wait until every process has called this function."""
    if num_processes() > 1:
        dist.barrier()


def full_tensor(tensor: Tensor) -> Tensor:
    """All values of a tensor that may be sharded. All processes must call it together."""
    if num_processes() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(value: Tensor, pattern: Tensor) -> Tensor:
    """`value` on the device of `pattern`, and sharded as `pattern` is."""
    if num_processes() == 1:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(pattern, DTensor) or value.shape != pattern.shape:
        return value
    value = value.to(pattern.device)
    return distribute_tensor(value, pattern.device_mesh, pattern.placements)
