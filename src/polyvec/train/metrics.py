"""A run's record: lines of JSON, the same numbers for TensorBoard, and a summary."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class Metrics:
    """Lines of JSON, one a record; a resumed run first drops what it is about to repeat."""

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
        """Remember a record; it reaches the disk with the next checkpoint."""
        self.records.append({"step": step, **values})

    def flush(self) -> None:
        """Append what was remembered to the files."""
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
        """Let go of TensorBoard's file."""
        if self.board is not None:
            self.board.close()


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a kill cut short is left out."""
    lines = file.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, over all its restarts."""

    steps: int
    """Updates asked for."""

    skipped: int
    """Of these, updates left out because loss or gradient was not finite."""

    tokens: int
    """Tokens read."""

    seconds: float
    """Spent in steps: without evaluation and checkpoints."""

    loss: float
    """Mean of the finite losses of the last tenth of the steps."""


def summarise(folder: Path) -> Summary:
    """Read a run's metrics.jsonl, and write what it says in sum as `summary.json` beside it."""
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
