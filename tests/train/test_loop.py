"""The training loop: resuming, damage, losses that are not finite."""

import json
import logging
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polyvec.train.loop import Settings, Work, schedule, train

SETTINGS = Settings(steps=12, learning_rate=0.01, table_rate=0.05, save_every=4, weight_decay=0.1)


class Toy(nn.Module):
    """A table with sparse gradients, a dense layer, and dropout to need random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 4, sparse=True)
        self.dense = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)

    def work(self, *, fail_at: int | None = None, stop_at: int | None = None) -> Work:
        """Fit a random target that depends on the step; fail or stop where told."""

        def step_work(step: int) -> tuple[Tensor, int]:
            if step == stop_at:
                raise KeyboardInterrupt
            ids = torch.randint(10, (5,), generator=torch.Generator().manual_seed(step))
            loss = (self.dense(self.dropout(self.table(ids))) - step % 3).square().mean()
            if step == fail_at:
                loss = loss * torch.nan
            loss.backward()
            return loss.detach(), 5

        return step_work


def run(folder: Path, model: Toy, work: Work) -> list[dict[str, float]]:
    """Train and read back the losses."""
    train(model.named_parameters(), work, SETTINGS, folder, tables=["table.weight"])
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(records: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(record["step"], record["loss"]) for record in records]


def same(one: Toy, two: Toy) -> bool:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Toy, list[dict[str, float]]]:
    """An uninterrupted run."""
    model = Toy()
    return model, run(tmp_path / "whole", model, model.work())


@pytest.mark.parametrize("stop_at", [2, 4, 7, 11])
def test_a_resumed_run_is_the_uninterrupted_run_to_the_bit(
    stop_at: int, whole: tuple[Toy, list[dict[str, float]]], tmp_path: Path
) -> None:
    killed = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", killed, killed.work(stop_at=stop_at))
    resumed = Toy()
    records = run(tmp_path / "cut", resumed, resumed.work())
    assert same(resumed, whole[0])
    assert losses(records) == losses(whole[1])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    whole: tuple[Toy, list[dict[str, float]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", killed, killed.work(stop_at=10))
    newest = tmp_path / "cut/step-00000008/weights"
    newest.write_bytes(newest.read_bytes()[:-20])
    resumed = Toy()
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "cut", resumed, resumed.work())
    assert "step-00000008 is damaged" in caplog.text
    assert same(resumed, whole[0])


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    model = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model, model.work(stop_at=6))
    shutil.copytree(tmp_path / "step-00000004", tmp_path / "writing")
    resumed = Toy()
    run(tmp_path, resumed, resumed.work())
    assert not (tmp_path / "writing").exists()


def test_a_loss_that_is_not_finite_changes_nothing_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, seen = Toy(), []
    inner = model.work(fail_at=5)

    def work(step: int) -> tuple[Tensor, int]:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        return inner(step)

    with caplog.at_level(logging.WARNING):
        run(tmp_path, model, work)
    assert all(torch.equal(a, b) for a, b in zip(seen[5], seen[6], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[4], seen[5], strict=True))
    assert "step 5 skipped" in caplog.text
    assert "1 of 12 steps were skipped" in caplog.text


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    model = Toy()
    run(tmp_path, model, model.work())
    other = Settings(steps=13, learning_rate=0.01, table_rate=0.05)
    with pytest.raises(ValueError, match="other settings"):
        train(model.named_parameters(), model.work(), other, tmp_path, tables=["table.weight"])


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    model = Toy()
    run(tmp_path, model, model.work())
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-00000008", "step-00000012"]


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    settings = Settings(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [schedule(step, settings) for step in range(101)]
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[100] == 0.0
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
