"""One run in several processes, as `torchrun` starts them; in one process nothing here acts.

The contract, PyTorch's own: every process adds the gradient of its own loss, and what the
optimiser sees is their mean. Plans are the same everywhere and hold the rows of the whole step;
the processes share its texts out among them (`share_out`).

Axes in this file: N rows, D width.
"""

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
"""A network, or one in PyTorch's wrapper; `fully_shard` leaves it a `Network`."""


def num_processes() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process. Process 0 alone writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def processes() -> Iterator[torch.device]:
    """Join the other processes that `torchrun` started, if it did; gives the device to use."""
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
    finally:
        dist.destroy_process_group()


def distribute(network: Network, how: Literal["ddp", "fsdp"]) -> Model:
    """The network as several processes train it; alone, the network itself.

    "ddp" keeps all weights in every process, "fsdp" a part of each, with the optimiser's state:
    for models that one device does not hold. Choose what is trained (`requires_grad_`) before,
    and name the parameters after: fully sharded ones are new objects.
    """
    if num_processes() == 1:
        return network
    if how == "ddp":
        return DistributedDataParallel(network)
    # Two seconds to import, here and below, which a single process need not wait for.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for layer in network.layers:
        fully_shard(layer)
    fully_shard(network)
    if network.mlm is not None:
        register_fsdp_forward_method(network, "mlm_logits")
    return network


def plain(network: Model) -> Network:
    """The network itself, out of its wrapper."""
    if isinstance(network, DistributedDataParallel):
        assert isinstance(network.module, Network)
        return network.module
    return network


def hold(network: Model) -> Callable[[], AbstractContextManager[object]]:
    """A context in which backward passes exchange no gradients; the next one outside does."""
    if num_processes() == 1:
        return nullcontext
    if isinstance(network, DistributedDataParallel):
        return network.no_sync
    return lambda: _hold_sharded(network)


@contextmanager
def _hold_sharded(network: Network) -> Iterator[None]:
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(network, FSDPModule), "several processes train what `distribute` gave them"
    network.set_requires_gradient_sync(False)
    yield
    network.set_requires_gradient_sync(True)


def share_out(lengths: Sequence[int], max_tokens: int | None) -> list[list[Int[np.ndarray, " _"]]]:
    """For every process its chunks, each the positions of some texts, shortest first.

    Chunks have about `max_tokens` tokens each (None: one chunk), and every process has as many
    chunks as the others, or they would wait for one another for ever. Every chunk has texts of all
    lengths, so that the processes finish together.

    >>> [[chunk.tolist() for chunk in chunks] for chunks in share_out([3, 9, 5, 1], max_tokens=9)]
    [[[3, 2], [0, 1]]]
    """
    count = num_processes()
    if len(lengths) < count:
        raise ValueError(f"a step of {len(lengths)} texts is too small for {count} processes")
    order = np.argsort(lengths, kind="stable")
    each = 1 if max_tokens is None else -(-sum(lengths) // (max_tokens * count))
    pieces = count * min(each, len(lengths) // count)
    return [[order[i::pieces] for i in range(first, pieces, count)] for first in range(count)]


class _Gather(torch.autograd.Function):
    """Equal numbers of rows of every process, stacked; the gradients come back summed."""

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


def gather(own: Float[Tensor, "n D"], counts: Sequence[int]) -> Float[Tensor, "N D"]:
    """The rows of all processes, process by process, with their gradient; process i has counts[i].

    Every process then computes the loss of the whole step, with everyone's texts as negatives.
    The gradient at a row is the sum of what all processes have for it, so that the mean over
    processes, which follows, is the gradient of the step.
    """
    if len(counts) == 1:
        return own
    padded = torch.cat([own, own.new_zeros(max(counts) - len(own), own.shape[1])])
    parts = _Gather.apply(padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def add_up(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The sum over processes of a number without a graph."""
    if num_processes() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def wait() -> None:
    """Until every process is here."""
    if num_processes() > 1:
        dist.barrier()


def whole(tensor: Tensor) -> Tensor:
    """A tensor's full value, wherever its parts are. All processes must ask together."""
    if num_processes() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, pattern: Tensor) -> Tensor:
    """`value` in parts where `pattern` is, on its device."""
    if num_processes() == 1:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(pattern, DTensor) or value.shape != pattern.shape:
        return value
    value = value.to(pattern.device)
    return distribute_tensor(value, pattern.device_mesh, pattern.placements)
