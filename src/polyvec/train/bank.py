"""The bank of adapters of a model: new adapters in it, other ranks, and a network that trains them.

An adapter's rank may be raised by zeros, which change no product. The scale, alpha / rank, is the
same for all adapters of a bank and never changes here.

Axes in this file: A adapters, R rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from polyvec.checkpoint import Weights, to_float
from polyvec.config import LIMITS, ModelConfig
from polyvec.network import Network
from polyvec.tasks import Task, adapter_index


def add_adapters(
    config: ModelConfig,
    weights: Weights,
    tasks: Sequence[Task],
    adapters: Mapping[str, np.ndarray],
) -> tuple[ModelConfig, Weights]:
    """Put adapters of the given tasks into every bank of the model.

    The adapter of a task that the model has is replaced, and others are appended. All other weights
    stay bit for bit equal; if the new adapters have a higher rank, the others get zeros. `adapters`
    has the new weights by the name of the bank, which are rounded to the bank's format. A bank
    without new weights (such as that of an unused pooler) gets zeros.
    """
    ranks = [array.shape[rank_axis(name)] for name, array in adapters.items()]
    rank = max([config.adapter_rank, *ranks])
    names = [task.name for task in config.tasks]
    new = [task for task in tasks if task.name not in names]
    places = [*names, *(task.name for task in new)]
    given = {task.name: task for task in tasks}
    new_weights: Weights = {}
    for name, weight in weights.items():
        if not name.endswith((".lora_a", ".lora_b")):
            new_weights[name] = weight
            continue
        assert isinstance(weight, np.ndarray), "adapters are not quantised"
        old = pad_rank(name, weight, rank)
        bank = np.zeros((len(places), *old.shape[1:]), weight.dtype)
        bank[: len(old)] = old
        if name in adapters:
            added = pad_rank(name, adapters[name], rank)
            for task, array in zip(tasks, added, strict=True):
                bank[places.index(task.name)] = array.astype(weight.dtype)
        new_weights[name] = bank
    kept = [given.get(task.name, task) for task in config.tasks]
    return replace(with_rank(config, rank), tasks=(*kept, *new)), new_weights


def with_rank(config: ModelConfig, rank: int) -> ModelConfig:
    """The config with another rank and the same scale."""
    if not 1 <= rank <= LIMITS["adapter_rank"]:
        raise ValueError(f"rank is {rank}, must be in 1..{LIMITS['adapter_rank']:,}")
    scale = config.adapter_scale
    # Rounding may make alpha / rank differ in the last bit, so neighbours of alpha are tried too.
    alphas = [scale * rank, *np.nextafter(scale * rank, [0.0, np.inf]).tolist()]
    exact = [alpha for alpha in alphas if alpha / rank == scale]
    return replace(config, adapter_rank=rank, adapter_alpha=exact[0] if exact else alphas[0])


def rank_axis(name: str) -> int:
    """The axis of a bank that has the size of the rank."""
    # In an embedding's adapter, A has a row per token, and the rank is its last axis.
    return -1 if name.startswith("embeddings.") == name.endswith("lora_a") else -2


def pad_rank(name: str, bank: np.ndarray, rank: int) -> np.ndarray:
    """A bank with zeros up to a rank. A bank that has this rank is returned itself."""
    axis = rank_axis(name)
    missing = rank - bank.shape[axis]
    if not missing:
        return bank
    widths = [(0, 0)] * bank.ndim
    widths[axis] = (0, missing)
    return np.pad(bank, widths)


def make_network(
    config: ModelConfig,
    weights: Weights,
    tasks: Sequence[Task],
    starts: Sequence[str | None],
    *,
    rank: int | None,
    seed: int,
) -> Network:
    """The model with a bank of only these tasks' adapters, and with the rotary base of inference.

    Each adapter is a copy of that of the task `starts[i]`, whose rank is not higher than `rank`, or
    begins as an update of zero. Columns of a higher rank begin as such an update, too. Nothing is
    trained until it is unfrozen.
    """
    rank = config.adapter_rank if rank is None else rank
    torch.manual_seed(seed)
    network = Network(replace(with_rank(config, rank), tasks=tuple(tasks))).requires_grad_(False)
    for name, parameter in network.named_parameters():
        if ".lora_" not in name:
            parameter.copy_(torch.tensor(to_float(weights[name])))
            continue
        bank = to_float(weights[name])
        axis = rank_axis(name)
        for place, start in enumerate(starts):
            if start is not None:
                source = torch.tensor(bank[adapter_index(config.tasks, start)])
                parameter[place].narrow(axis, 0, config.adapter_rank).copy_(source)
    return network


def read_adapters(parameters: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The trained adapters by the name of their bank."""
    return {
        name: parameter.detach().cpu().numpy()
        for name, parameter in parameters.items()
        if ".lora_" in name
    }
