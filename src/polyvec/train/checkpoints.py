"""Checkpoints of a run: written atomically, and read from the newest that is intact.

A checkpoint is a folder such as `step-00001000` with the safetensors files `weights`,
`optimizer-0` and so on. It contains no random state and no position in the data, because both
follow from the step number.
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

from polyvec.train.distributed import barrier, distribute_like, full_tensor, rank

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    named: Mapping[str, nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    keep: int,
    best: int | None = None,
) -> None:
    """Write a checkpoint, and delete all but the newest `keep` checkpoints and that of step `best`.

    The files are written to another folder, which is then renamed. A reader, or a run that is
    killed at any time, therefore finds a complete checkpoint or none.
    """
    files = {"weights": {name: full_tensor(p.detach()).contiguous() for name, p in named.items()}}
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()["state"]
        flat = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
        files[f"optimizer-{number}"] = {name: full_tensor(value) for name, value in flat.items()}
    if rank() == 0:
        part, target = folder / "writing", folder / f"step-{step:08d}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name, tensors in files.items():
            save_file(tensors, part / name)
            # The data must reach the disk before the rename does, or a power failure could leave
            # an empty file with its final name.
            with (part / name).open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            if best is None or old.name != f"step-{best:08d}":
                shutil.rmtree(old)
    barrier()


def resume(
    folder: Path,
    named: Mapping[str, nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
) -> int:
    """Load the newest intact checkpoint and return its step, or 0 if there is none.

    Raises ValueError if the checkpoint is of a run that trains other parameters.
    """
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            weights = load_file(checkpoint / "weights")
            flats = [load_file(checkpoint / f"optimizer-{n}") for n in range(len(optimizers))]
        except (SafetensorError, OSError) as fault:
            logger.warning("%s is damaged (%s); trying the one before", checkpoint, fault)
            continue
        _copy_weights(checkpoint, weights, named)
        for optimizer, flat in zip(optimizers, flats, strict=True):
            _load_state(optimizer, flat)
        return int(checkpoint.name.removeprefix("step-"))
    return 0


def load_weights(checkpoint: Path, named: Mapping[str, nn.Parameter]) -> None:
    """Load the weights of a checkpoint. Raises ValueError if it is damaged or of another run."""
    try:
        weights = load_file(checkpoint / "weights")
    except (SafetensorError, OSError) as fault:
        raise ValueError(f"the best checkpoint, {checkpoint}, is damaged: {fault}") from None
    _copy_weights(checkpoint, weights, named)


def _copy_weights(
    checkpoint: Path, weights: Mapping[str, Tensor], named: Mapping[str, nn.Parameter]
) -> None:
    if weights.keys() != named.keys():
        other = sorted(weights.keys() ^ named.keys())
        raise ValueError(f"{checkpoint} trains other parameters: {other}")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(distribute_like(weights[name], parameter))


def _load_state(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = distribute_like(value, parameters[int(number)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def average_checkpoints(folder: Path, last: int) -> dict[str, Tensor]:
    """Mean weights of the newest `last` checkpoints of a run (Izmailov et al. 2018).

    Raises ValueError if the folder contains fewer checkpoints (`Settings.keep`).
    """
    newest = sorted(folder.glob("step-*"))[-last:]
    if len(newest) < last:
        raise ValueError(
            f"{folder} holds {len(newest)} checkpoints, not {last}; raise Settings.keep"
        )
    total: dict[str, Tensor] = {}
    for checkpoint in newest:
        for name, tensor in load_file(checkpoint / "weights").items():
            # The sum is in float64, so that the mean of equal weights is exactly these weights.
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + tensor
    return {name: (tensor / last).float() for name, tensor in total.items()}
