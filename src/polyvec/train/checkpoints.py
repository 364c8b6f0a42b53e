"""A run's checkpoints: written whole or not at all, read from the newest that is whole.

A checkpoint is a folder `step-00001000` of safetensors files: `weights`, and `optimizer-0` and so
on. There is no random state and no position in the data: both follow from the step.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyvec.train.distributed import like, rank, wait, whole

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    named: Mapping[str, nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    keep: int,
) -> None:
    """Write everything into a new folder, rename it, and drop all but the newest `keep`.

    A reader, or a run that was killed at any time, sees all of a checkpoint or none of it.
    """
    files = {"weights": {name: whole(p.detach()).contiguous() for name, p in named.items()}}
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()["state"]
        flat = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
        files[f"optimizer-{number}"] = {name: whole(value) for name, value in flat.items()}
    if rank() == 0:
        part, target = folder / "writing", folder / f"step-{step:08d}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name, tensors in files.items():
            save_file(tensors, part / name)
            # On the disk before the rename is, or a power cut could leave a named empty file.
            with (part / name).open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    wait()


def resume(
    folder: Path,
    named: Mapping[str, nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
) -> int:
    """Load the newest checkpoint that is whole and give its step; 0 where there is none.

    Raises ValueError if it trains other parameters.
    """
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            weights = load_file(checkpoint / "weights")
            flats = [load_file(checkpoint / f"optimizer-{n}") for n in range(len(optimizers))]
        except (SafetensorError, OSError) as fault:
            logger.warning("%s is damaged (%s); trying the one before", checkpoint, fault)
            continue
        if weights.keys() != named.keys():
            other = sorted(weights.keys() ^ named.keys())
            raise ValueError(f"{checkpoint} trains other parameters: {other}")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(like(weights[name], parameter))
        for optimizer, flat in zip(optimizers, flats, strict=True):
            _load_state(optimizer, flat)
        return int(checkpoint.name.removeprefix("step-"))
    return 0


def _load_state(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = like(value, parameters[int(number)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def average_checkpoints(folder: Path, last: int) -> dict[str, Tensor]:
    """The mean of the weights of a run's newest `last` checkpoints (Izmailov et al. 2018).

    Raises ValueError if the run has not kept so many (`Settings.keep`).
    """
    found = sorted(folder.glob("step-*"))[-last:]
    if len(found) < last:
        raise ValueError(f"{folder} holds {len(found)} checkpoints, not {last}; see Settings.keep")
    total: dict[str, Tensor] = {}
    for checkpoint in found:
        for name, tensor in load_file(checkpoint / "weights").items():
            # In float64: a sum of equal weights must give them back.
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + tensor
    return {name: (tensor / last).float() for name, tensor in total.items()}
