"""The training loop: resuming, damaged files, and losses that are not finite."""

import json
import logging
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from polyvec.train.checkpoints import average_checkpoints
from polyvec.train.loop import Settings, StepFn, schedule, train
from polyvec.train.metrics import read_records
from tests.processes import wait_for

ROOT = Path(__file__).parents[2]

SETTINGS = Settings(steps=12, learning_rate=0.01, table_rate=0.05, save_every=4, weight_decay=0.1)


class Toy(nn.Module):
    """A table with sparse gradients, a dense layer, and dropout, which needs random numbers."""

    def __init__(self, *, hidden: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 4, sparse=True)
        self.hidden = nn.Linear(4, 4) if hidden else nn.Identity()
        self.dense = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)

    def make_step_fn(
        self, *, fail_at: Sequence[int] = (), stop_at: int | None = None, pause: float = 0.0
    ) -> StepFn:
        """Fit a random target that depends on the step; fail or stop at the given steps."""

        def step_fn(step: int) -> tuple[Tensor, int]:
            if step == stop_at:
                raise KeyboardInterrupt
            time.sleep(pause)
            ids = torch.randint(10, (5,), generator=torch.Generator().manual_seed(step))
            hidden = self.hidden(self.dropout(self.table(ids)))
            loss = (self.dense(hidden) - step % 3).square().mean()
            if step in fail_at:
                loss = loss * torch.nan
            loss.backward()
            return loss.detach(), 5

        return step_fn


def run(folder: Path, model: Toy, step_fn: StepFn) -> list[dict[str, float]]:
    """Train, and return the records."""
    train(model.named_parameters(), step_fn, SETTINGS, folder, tables=["table.weight"])
    return read_records(folder / "metrics.jsonl")


def losses(records: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(record["step"], record["loss"]) for record in records]


def same(one: Toy, two: Toy) -> bool:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Toy, list[dict[str, float]]]:
    """An uninterrupted run."""
    model = Toy()
    return model, run(tmp_path / "whole", model, model.make_step_fn())


@pytest.mark.parametrize("stop_at", [2, 4, 7, 11])
def test_a_resumed_run_equals_the_uninterrupted_run_bit_for_bit(
    stop_at: int, whole: tuple[Toy, list[dict[str, float]]], tmp_path: Path
) -> None:
    killed = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", killed, killed.make_step_fn(stop_at=stop_at))
    resumed = Toy()
    records = run(tmp_path / "cut", resumed, resumed.make_step_fn())
    assert same(resumed, whole[0])
    assert losses(records) == losses(whole[1])


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    whole: tuple[Toy, list[dict[str, float]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", killed, killed.make_step_fn(stop_at=10))
    newest = tmp_path / "cut/step-00000008/weights"
    newest.write_bytes(newest.read_bytes()[:-20])
    resumed = Toy()
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "cut", resumed, resumed.make_step_fn())
    assert "step-00000008 is damaged" in caplog.text
    assert same(resumed, whole[0])


def test_an_incomplete_checkpoint_is_never_read(tmp_path: Path) -> None:
    model = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model, model.make_step_fn(stop_at=6))
    shutil.copytree(tmp_path / "step-00000004", tmp_path / "writing")
    resumed = Toy()
    run(tmp_path, resumed, resumed.make_step_fn())
    assert not (tmp_path / "writing").exists()


def test_a_loss_that_is_not_finite_changes_nothing_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, seen = Toy(), []
    inner = model.make_step_fn(fail_at=[5])

    def step_fn(step: int) -> tuple[Tensor, int]:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        return inner(step)

    with caplog.at_level(logging.WARNING):
        run(tmp_path, model, step_fn)
    assert all(torch.equal(a, b) for a, b in zip(seen[5], seen[6], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[4], seen[5], strict=True))
    assert "step 5 skipped" in caplog.text
    assert "1 of 12 steps were skipped" in caplog.text


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    model = Toy()
    run(tmp_path, model, model.make_step_fn())
    other = Settings(steps=13, learning_rate=0.01, table_rate=0.05)
    with pytest.raises(ValueError, match="other settings"):
        train(
            model.named_parameters(), model.make_step_fn(), other, tmp_path, tables=["table.weight"]
        )


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    model = Toy()
    run(tmp_path, model, model.make_step_fn())
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-00000008", "step-00000012"]


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    settings = Settings(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [schedule(step, settings) for step in range(101)]
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[100] == 0.0
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulated_gradients_equal_those_of_the_large_batch(parts: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs, start = torch.randn(6, 20, 4), nn.Linear(4, 3).state_dict()

    def fit(pieces: int, folder: Path) -> nn.Linear:
        model = nn.Linear(4, 3)
        model.load_state_dict(start)

        def step_fn(call: int) -> tuple[Tensor, int]:
            batch = inputs[call // pieces].chunk(pieces)[call % pieces]
            loss = model(batch).square().mean()
            loss.backward()
            return loss.detach(), len(batch)

        settings = Settings(steps=6, learning_rate=0.1, accumulate=pieces, clip=0.1)
        train(model.named_parameters(), step_fn, settings, folder)
        return model

    big, small = fit(1, tmp_path / "big"), fit(parts, tmp_path / "small")
    torch.testing.assert_close(big.weight, small.weight, rtol=0, atol=1e-6)
    records = [read_records(tmp_path / name / "metrics.jsonl") for name in ("big", "small")]
    for one, two in zip(*records, strict=True):
        assert one["tokens"] == two["tokens"] == 20
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_muon_moves_matrices_along_an_orthogonal_update(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    before, bias = model.weight.detach().clone(), model.bias.detach().clone()

    def step_fn(step: int) -> tuple[Tensor, int]:
        loss = model(torch.randn(32, 8)).square().mean()
        loss.backward()
        return loss.detach(), 32

    settings = Settings(steps=1, learning_rate=1e-3, muon_rate=0.01, warmup=0.0)
    train(model.named_parameters(), step_fn, settings, tmp_path, muon=["weight"])
    sizes = torch.linalg.svdvals(before - model.weight.detach())
    # Newton-Schulz leaves all singular values within a factor of about two; a gradient does not.
    assert sizes.max() / sizes.min() < 3
    torch.testing.assert_close((model.bias - bias).abs(), torch.full((8,), 1e-3))


def test_names_that_are_not_trained_are_refused(tmp_path: Path) -> None:
    model = Toy()
    with pytest.raises(ValueError, match="nothing"):
        train(
            model.named_parameters(),
            model.make_step_fn(),
            SETTINGS,
            tmp_path,
            muon=["nothing.weight"],
        )


EVERYTHING = replace(SETTINGS, muon_rate=0.02, accumulate=2, tensorboard=True, keep=3)
"""Settings with which everything that has a state or a file is in use."""


def run_everything(folder: Path, model: Toy, step_fn: StepFn) -> list[dict[str, float]]:
    parameters = model.named_parameters()
    tables = ["table.weight"]
    train(parameters, step_fn, EVERYTHING, folder, tables=tables, muon=["hidden.weight"])
    return read_records(folder / "metrics.jsonl")


def test_a_run_with_all_settings_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Everything: accumulation, Muon, sparse tables, dropout and TensorBoard."""
    model = Toy(hidden=True)
    expected = run_everything(tmp_path / "whole", model, model.make_step_fn())
    killed = Toy(hidden=True)
    with pytest.raises(KeyboardInterrupt):
        run_everything(tmp_path / "cut", killed, killed.make_step_fn(stop_at=15))
    resumed = Toy(hidden=True)
    records = run_everything(tmp_path / "cut", resumed, resumed.make_step_fn())
    assert same(resumed, model)
    assert losses(records) == losses(expected)


KILLED = """
import sys
from pathlib import Path
from tests.train.test_loop import Toy, run_everything
model = Toy(hidden=True)
run_everything(Path(sys.argv[1]), model, model.make_step_fn(pause=0.01))
"""


def wait_until_it_writes(child: subprocess.Popen, folder: Path) -> None:
    before = len(list(folder.glob("step-*/weights")))
    wait_for(lambda: child.poll() is not None or len(list(folder.glob("**/weights"))) > before)


def test_a_run_killed_at_any_time_ends_like_the_uninterrupted_one(tmp_path: Path) -> None:
    """SIGKILL during steps and while checkpoints are written. No file is incomplete."""
    model = Toy(hidden=True)
    expected = run_everything(tmp_path / "whole", model, model.make_step_fn())
    folder, kills = tmp_path / "cut", 0
    rng = random.Random(0)
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT) as child:
            # From its first written file on, somewhere within the next steps.
            try:
                wait_until_it_writes(child, folder)
                time.sleep(rng.random() * 0.05)
            finally:
                child.kill()
        kills += child.returncode == -signal.SIGKILL
        for checkpoint in folder.glob("step-*"):
            assert {file.name for file in checkpoint.iterdir()} == {
                "weights",
                "optimizer-0",
                "optimizer-1",
                "optimizer-2",
            }
            for file in checkpoint.iterdir():
                load_file(file)
    assert kills
    resumed = Toy(hidden=True)
    records = run_everything(folder, resumed, resumed.make_step_fn())
    assert same(resumed, model)
    assert losses(records) == losses(expected)


def test_the_summary_counts_what_was_skipped_over_restarts(tmp_path: Path) -> None:
    """A NaN before a kill and a NaN after it are both in the summary."""
    killed = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed, killed.make_step_fn(fail_at=[1, 9], stop_at=6))
    resumed = Toy()
    run(tmp_path, resumed, resumed.make_step_fn(fail_at=[1, 9]))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["skipped"]) == (12, 2)
    assert summary["tokens"] == 12 * 5
    assert math.isfinite(summary["loss"])


def test_an_incomplete_metrics_line_is_written_again(tmp_path: Path) -> None:
    """The run was killed while it wrote a record."""
    killed = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed, killed.make_step_fn(stop_at=9))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    resumed = Toy()
    assert [record["step"] for record in run(tmp_path, resumed, resumed.make_step_fn())] == [
        *range(12)
    ]


def test_settings_added_after_a_run_began_do_not_stop_it(tmp_path: Path) -> None:
    model = Toy()
    run(tmp_path, model, model.make_step_fn())
    file = tmp_path / "settings.json"
    older = json.loads(file.read_text())
    del older["muon_rate"], older["tensorboard"]
    file.write_text(json.dumps(older))
    run(tmp_path, model, model.make_step_fn())
    file.write_text(json.dumps(older | {"muon_rate": 1.0}))
    with pytest.raises(ValueError, match="other settings"):
        run(tmp_path, model, model.make_step_fn())


def test_tensorboard_has_what_the_metrics_have(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = Toy(hidden=True)
    records = run_everything(tmp_path, model, model.make_step_fn())
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert found == pytest.approx(dict(losses(records)))


def test_averaged_checkpoints_are_the_mean_of_the_last(tmp_path: Path) -> None:
    model = Toy()
    settings = replace(SETTINGS, keep=3)
    train(
        model.named_parameters(), model.make_step_fn(), settings, tmp_path, tables=["table.weight"]
    )
    saved = [load_file(tmp_path / f"step-{n:08d}/weights") for n in (4, 8, 12)]
    found = average_checkpoints(tmp_path, last=2)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (saved[1][name] + saved[2][name]) / 2)
    alone = average_checkpoints(tmp_path, last=1)
    assert all(torch.equal(alone[name], saved[2][name]) for name in alone)
    with pytest.raises(ValueError, match="holds 3 checkpoints, not 4"):
        average_checkpoints(tmp_path, last=4)


def run_scored(
    folder: Path, scores: Sequence[float], *, patience: int = 0, stop_at: int | None = None
) -> tuple[int, Toy]:
    """Train with one evaluation after each step, which has the next of some scores."""
    model = Toy()
    settings = replace(SETTINGS, save_every=1, keep=1, best="score", patience=patience)
    given = {step: score for step, score in enumerate(scores, 1)}
    done = max([int(path.name[5:]) for path in folder.glob("step-*")], default=0)
    left = iter([given[step] for step in sorted(given) if step > done])
    last = train(
        model.named_parameters(),
        model.make_step_fn(stop_at=stop_at),
        settings,
        folder,
        tables=["table.weight"],
        evaluate=lambda: {"score": next(left)},
    )
    return last, model


TABLES = ["table.weight"]

SCORES = [0.1, 0.5, 0.9, 0.4, 0.9, 0.2, 0.3, 0.8, 0.1, 0.2, 0.3, 0.4]


def test_a_run_ends_with_its_best_checkpoint(tmp_path: Path) -> None:
    last, model = run_scored(tmp_path, SCORES)
    assert last == 5
    saved = load_file(tmp_path / "step-00000005/weights")
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-00000005",
        "step-00000012",
    ]


def test_a_run_stops_early_and_so_does_a_resumed_one(tmp_path: Path) -> None:
    last, model = run_scored(tmp_path / "whole", SCORES, patience=3)
    assert last == 5
    steps = [record["step"] for record in read_records(tmp_path / "whole/metrics.jsonl")]
    assert max(steps) == 7
    with pytest.raises(KeyboardInterrupt):
        run_scored(tmp_path / "cut", SCORES, patience=3, stop_at=6)
    for _ in range(2):
        again, resumed = run_scored(tmp_path / "cut", SCORES, patience=3)
        assert again == 5
        assert same(resumed, model)
        records = read_records(tmp_path / "cut/metrics.jsonl")
        assert [record["step"] for record in records] == steps


def test_metrics_and_progress_are_written_during_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("polyvec.train.loop.SECONDS_BETWEEN_LINES", -1)
    model = Toy()
    written = []

    def step_fn(step: int) -> tuple[Tensor, int]:
        file = tmp_path / "metrics.jsonl"
        written.append(len(read_records(file)) if file.exists() else 0)
        return model.make_step_fn()(step)

    run(tmp_path, model, step_fn)
    assert written == [*range(12)]
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("polyvec: step ") for line in lines) == 12
    assert "polyvec: step 3 of 12, loss " in "\n".join(lines)


def test_weights_and_biases_gets_what_the_metrics_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged, started = [], []

    class Run:
        def log(self, values: dict, step: int) -> None:
            logged.append({"step": step, **values})

        def finish(self) -> None:
            logged.append("finished")

    class Wandb:
        @staticmethod
        def init(**options: object) -> Run:
            started.append(options)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    model = Toy()
    settings = replace(SETTINGS, wandb=True)
    for _ in range(2):
        train(
            model.named_parameters(),
            model.make_step_fn(),
            settings,
            tmp_path,
            tables=TABLES,
        )
    assert logged == [*read_records(tmp_path / "metrics.jsonl"), "finished", "finished"]
    assert started[0]["id"] == started[1]["id"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        train(
            model.named_parameters(),
            model.make_step_fn(),
            settings,
            tmp_path,
            tables=TABLES,
        )
