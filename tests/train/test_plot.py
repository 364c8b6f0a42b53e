"""The plot of a run."""

import json
from pathlib import Path

import numpy as np

from polyvec.train.plot import plot_run, running_mean


def test_a_run_is_plotted(tmp_path: Path) -> None:
    records = [
        {"step": step, "loss": 3 / (step + 1), "rate": 1.0, "tokens": 100, "seconds": 0.5}
        for step in range(200)
    ]
    records += [{"step": step, "sts-en": 60.0 + step / 10} for step in (99, 199)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(text)
    picture = plot_run(tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_the_running_mean_keeps_a_straight_line() -> None:
    steps = np.arange(150)
    where, means = running_mean(steps, 2.0 * steps)
    np.testing.assert_allclose(means, 2.0 * where)
    assert len(means) == 148
