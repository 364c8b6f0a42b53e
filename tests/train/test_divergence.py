"""A run whose loss explodes is stopped, and its last good checkpoint stays."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from polyvec.train.divergence import Diverged, LossWatch
from polyvec.train.loop import Settings, train
from polyvec.train.metrics import read_records
from tests.train.test_loop import SETTINGS, Toy, run


def feed(losses: list[float], steps: int = 200) -> int | None:
    """The step at which these losses are called a divergence, or None."""
    watch = LossWatch(Path("nowhere"), steps, 0)
    for step, loss in enumerate(losses):
        try:
            watch.check(step, loss)
        except Diverged:
            return step
    return None


def test_falling_noisy_and_alternating_losses_are_good() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(200, generator=generator).tolist()
    assert feed([3 * math.exp(-i / 50) + noise[i] for i in range(200)]) is None
    assert feed([0.02 * noise[i] for i in range(200)]) is None
    assert feed([(0.3, 2.5)[noise[i] > 0.4] for i in range(200)]) is None
    assert feed([math.nan if i % 3 == 0 else 1.0 for i in range(200)]) is None


def test_exploding_losses_are_not() -> None:
    assert feed([2.0] * 40 + [20.0] * 40) is not None
    assert feed([1.0, 12.0, 13.0, *[15.0] * 30]) is not None
    assert feed([2.0] * 40 + [math.nan] * 10) == 49
    assert feed([2.0, *[math.nan] * 5], steps=8) == 4


def test_a_run_without_a_finite_loss_stops_and_keeps_its_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Toy()
    with caplog.at_level(logging.CRITICAL), pytest.raises(Diverged) as caught:
        run(tmp_path, model, model.make_step_fn(fail_at=[*range(5, 12)]))
    assert "no loss was finite" in str(caught.value)
    assert "The last good checkpoint is" in str(caught.value)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000004"]
    for checkpoint in tmp_path.glob("step-*"):
        assert all(torch.isfinite(t).all() for t in load_file(checkpoint / "weights").values())
    assert read_records(tmp_path / "metrics.jsonl")[-1]["step"] == 10


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model = Toy()

    def step_fn(step: int) -> tuple[Tensor, int]:
        loss, tokens = model.make_step_fn()(step)
        if step == 5:
            with torch.no_grad():
                model.dense.weight.fill_(torch.inf)
        return loss, tokens

    with pytest.raises(Diverged, match="the weights are no longer finite"):
        train(
            model.named_parameters(),
            step_fn,
            replace(SETTINGS, save_every=6),
            tmp_path,
            tables=["table.weight"],
        )
    assert not [*tmp_path.glob("step-*")]


def test_a_resumed_run_remembers_its_first_losses(tmp_path: Path) -> None:
    model = Toy()
    settings = Settings(steps=80, learning_rate=0.0, save_every=40)

    def step_fn(step: int) -> tuple[Tensor, int]:
        if step == 45 and not resumed:
            raise KeyboardInterrupt
        loss, tokens = model.make_step_fn()(step)
        return loss * 0 + (1.0 if step < 40 else 9.0), tokens

    resumed = False
    with pytest.raises(KeyboardInterrupt):
        train(model.named_parameters(), step_fn, settings, tmp_path, tables=["table.weight"])
    resumed = True
    with pytest.raises(Diverged, match="the loss rose from 1 to"):
        train(model.named_parameters(), step_fn, settings, tmp_path, tables=["table.weight"])
