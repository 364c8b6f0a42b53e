"""Metrics of a run: JSON lines, the same numbers for TensorBoard, and a summary."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class Metrics:
    """A file with one JSON record per line.

    A resumed run first deletes the records of steps that it will repeat.
    """

    def __init__(self, folder: Path, start: int, *, tensorboard: bool) -> None:
        self.file = folder / "metrics.jsonl"
        self.records: list[dict[str, float | int]] = []
        self.board = None
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
        self.records.clear()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self.board is not None:
            self.board.close()


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
