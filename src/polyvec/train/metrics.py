"""Metrics of a run: JSON lines, the same numbers for two trackers, and a summary.

The trackers are TensorBoard and Weights & Biases, whose package `wandb` is not among our extras.
"""

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class Metrics:
    """A file with one JSON record per line.

    A resumed run first deletes the records of steps that it will repeat.
    """

    def __init__(
        self, folder: Path, start: int, *, tensorboard: bool = False, wandb: bool = False
    ) -> None:
        self.file = folder / "metrics.jsonl"
        self.records: list[dict[str, float | int]] = []
        self.board = None
        self.tracker = _start_wandb(folder) if wandb else None
        if self.file.exists():
            kept = [record for record in read_records(self.file) if record["step"] < start]
            part = self.file.with_suffix(".part")
            part.write_text("".join(json.dumps(record) + "\n" for record in kept))
            part.replace(self.file)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def add(self, step: int, values: Mapping[str, float | int]) -> None:
        """Add a record, which `flush` writes to the disk."""
        self.records.append({"step": step, **values})

    def flush(self) -> None:
        """Append all added records to the files."""
        with self.file.open("a") as out:
            out.write("".join(json.dumps(record) + "\n" for record in self.records))
        if self.board is not None:
            for record in self.records:
                for name, value in record.items():
                    if name != "step":
                        self.board.add_scalar(name, value, record["step"])
            self.board.flush()
        if self.tracker is not None:
            for record in self.records:
                values = {name: value for name, value in record.items() if name != "step"}
                self.tracker.log(values, step=record["step"])
        self.records.clear()

    def close(self) -> None:
        """End the trackers."""
        if self.board is not None:
            self.board.close()
        if self.tracker is not None:
            self.tracker.finish()


def _start_wandb(folder: Path) -> Any:
    """Start a run of Weights & Biases, or continue the one of this folder."""
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "Weights & Biases is not installed: pip install wandb, or leave out --wandb"
        ) from None
    file = folder / "wandb-id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    name = folder.resolve().name
    return wandb.init(
        project="polyvec", name=name, id=file.read_text(), resume="allow", dir=str(folder)
    )


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl, without a last line that a kill left incomplete."""
    lines = file.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Totals of a run, over all its restarts."""

    steps: int
    """Number of steps."""

    skipped: int
    """Steps without an update, because the loss or the gradient was not finite."""

    tokens: int
    """Tokens that the steps read."""

    seconds: float
    """Time spent in steps, without evaluation and checkpoints."""

    loss: float
    """Mean of the finite losses in the last tenth of the steps."""


def summarise(folder: Path) -> Summary:
    """Summarise a run's metrics.jsonl, and write the summary to `summary.json` in its folder."""
    steps = [record for record in read_records(folder / "metrics.jsonl") if "tokens" in record]
    losses = [record["loss"] for record in steps[-max(1, len(steps) // 10) :]]
    finite = [loss for loss in losses if math.isfinite(loss)]
    summary = Summary(
        steps=len(steps),
        skipped=sum("skipped" in record for record in steps),
        tokens=sum(record["tokens"] for record in steps),
        seconds=round(sum(record["seconds"] for record in steps), 3),
        loss=sum(finite) / max(1, len(finite)),
    )
    (folder / "summary.json").write_text(json.dumps(asdict(summary), indent=1) + "\n")
    return summary
