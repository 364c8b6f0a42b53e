"""A plot of a run: loss, learning rate, speed and scores by step."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from polyvec.train.metrics import read_records

PANELS = ("loss", "rate", "tokens per second", "scores")


def plot_run(folder: Path) -> Path:
    """Plot `folder/metrics.jsonl` as `folder/run.png`, and return the path of the plot.

    Faint lines show single steps; strong lines show a running mean over a fiftieth of the run.
    """
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in read_records(folder / "metrics.jsonl"):
        step = record.pop("step")
        record.pop("skipped", None)
        if "tokens" in record:
            record["tokens per second"] = record.pop("tokens") / record.pop("seconds")
        for name, value in record.items():
            curves[name].append((step, value))
    figure = Figure(figsize=(11, 7), layout="constrained")
    for panel, axes in zip(PANELS, figure.subplots(2, 2).flat, strict=True):
        axes.set_title(panel)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        names = [panel] if panel in curves else sorted({*curves} - {*PANELS})
        for number, name in enumerate(names):
            steps, values = (np.array(side) for side in zip(*curves[name], strict=True))
            if name == panel:
                axes.plot(steps, values, alpha=0.25, linewidth=0.8)
                axes.plot(*running_mean(steps, values), color="C0")
            else:
                # Twenty colours distinguish the lines; a legend next to the plot hides none.
                color = colormaps["tab20"](number % 20)
                axes.plot(steps, values, marker="o", color=color, label=name)
                axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    path = folder / "run.png"
    figure.savefig(path, dpi=110)
    return path


def running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over windows of a fiftieth of the values, each at the middle step of its window.

    >>> running_mean(np.arange(4), np.array([1.0, 2.0, 3.0, 5.0]))[1].tolist()
    [1.0, 2.0, 3.0, 5.0]
    """
    size = max(1, len(values) // 50)
    kernel = np.full(size, 1 / size)
    middle = (size - 1) // 2
    means = np.convolve(values, kernel, mode="valid")
    return steps[middle : middle + len(means)], means
