"""Scores on disk: one small JSON a model, for people, reports and comparisons."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Score:
    """A score in 0..1 and its 95 % interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One model on one task."""

    kind: str
    """mteb's task type."""

    metric: str
    """mteb's name of the main score."""

    revision: str
    """Fingerprint of the task's data."""

    seconds: float
    score: Score
    """The mean over the subsets."""

    subsets: dict[str, Score]
    """By language, or pair of languages."""

    draws: tuple[int, ...] = ()
    """Scores times 10,000 of the first resamples behind the interval. Every model's draws are of
    the same items, so two models can be compared draw by draw; empty where a score has none."""


@dataclass(slots=True)
class Summary:
    """One model on all the tasks it was run on."""

    model: str
    variant: str
    """What was changed for a comparison (`dim 64`, `adapter none`); empty for the model as is."""

    revision: str
    """Fingerprint of the weights."""

    mteb: str
    """mteb's version."""

    machine: str
    date: str
    tasks: dict[str, TaskScore] = field(default_factory=dict)


def summary_path(results: Path, model: str, variant: str) -> Path:
    """Where a model's summary lies.

    >>> summary_path(Path("results"), "polyvec-mini", "dim 64").as_posix()
    'results/polyvec-mini.dim.64.json'
    """
    return results / f"{'.'.join([model, *variant.split()])}.json"


def read_summaries(results: Path) -> list[Summary]:
    """Every summary in a folder of results, by file name.

    Raises ValueError where there is none.
    """
    paths = sorted(results.glob("*.json"))
    if not paths:
        raise ValueError(f"{results} holds no results; `polyvec eval` writes them")
    return [read_summary(path) for path in paths]


def read_summary(path: Path) -> Summary:
    """What `write_summary` wrote."""
    data = json.loads(path.read_text())
    tasks = {name: _task_score(task) for name, task in data.pop("tasks").items()}
    return Summary(**data, tasks=tasks)


def falls(before: Summary, after: Summary, tasks: Collection[str]) -> list[str]:
    """A sentence for each of `tasks` whose score is below its interval of before.

    Where there is no interval, a point is allowed. Raises ValueError if no task is in both, or if
    a task's data is not the same, since then nothing can be said.
    """
    both = [name for name in before.tasks if name in tasks and name in after.tasks]
    if not both:
        raise ValueError(f"{before.model} and {after.model} have no task in common to compare")
    sentences = []
    for name in both:
        old, new = before.tasks[name], after.tasks[name]
        if old.revision != new.revision:
            raise ValueError(f"{name} has other data or cuts than before: score it again")
        value, low = new.score.value, old.score.low
        least = old.score.value - 0.01 if low is None else low
        if value < least:
            sentences.append(
                f"{after.model} {name}: {100 * value:.1f}, was {100 * old.score.value:.1f} and not "
                f"below {100 * least:.1f}"
            )
    return sentences


def write_summary(path: Path, summary: Summary) -> None:
    """Replace `path` in one step, so that a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(_rounded(asdict(summary)), indent=1, ensure_ascii=False) + "\n")
    whole.replace(path)


def _task_score(data: dict[str, Any]) -> TaskScore:
    subsets = {name: Score(**score) for name, score in data.pop("subsets").items()}
    draws = tuple(map(int, data.pop("draws", "").split()))
    score = Score(**data.pop("score"))
    return TaskScore(**data, score=score, subsets=subsets, draws=draws)


def _rounded(value: object) -> object:
    if isinstance(value, tuple):
        # One line of a file and not two hundred.
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 5) if isinstance(value, float) else value
