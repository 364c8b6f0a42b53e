"""Scores on disk: one small JSON file per model or variant of a model."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SHOWN_DIGITS = 8
"""Digits of a revision that tell two models of one name apart."""

ALLOWED_DROP = 0.01
"""Decrease that is no regression, for scores without an interval."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score in 0..1, with its 95 % interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The scores of one model on one task."""

    kind: str
    """mteb's task type."""

    metric: str
    """mteb's name of the main score."""

    revision: str
    """Fingerprint of the task's data, and of what decides which rows of it are scored."""

    seconds: float
    score: Score
    """The mean over the subsets."""

    subsets: dict[str, Score]
    """Scores by language, or by pair of languages."""

    draws: tuple[int, ...] = ()
    """Scores of the first bootstrap resamples, times `intervals.DRAW_SCALE`. All models are scored
    on the same resampled items, so two models can be compared draw by draw. Empty if the score has
    no interval."""

    scorer: str = ""
    """The versions of the code that computed the score (`runner.scorer`)."""

    left_out: str = ""
    """The rows of the task's tables that were left out, in words. Empty if all were scored."""

    def is_comparable(self, other: "TaskScore") -> bool:
        """Tell whether two scores are of the same data, by the same code."""
        return (self.revision, self.scorer, self.metric) == (
            other.revision,
            other.scorer,
            other.metric,
        )


@dataclass(slots=True)
class Summary:
    """The scores of one model on all tasks that it was run on."""

    model: str
    """Display name. Two models can have the same; `revision` tells them apart."""

    variant: str
    """The change that was made for a comparison (`dim 64`, `adapter none`). Empty for the model
    itself."""

    revision: str
    """Fingerprint of everything that decides the model's vectors: weights, config, tokenizer."""

    mteb: str
    """Version of mteb that computed the newest score."""

    machine: str
    date: str
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    argument: str = ""
    """The name by which `polyvec eval` loaded the model. Empty if it is not known."""


def find_summary(results: Path, model: str, variant: str, revision: str) -> Path:
    """Return the file for the scores of a model or variant, whether it exists or not.

    It is named after the model. If another model has taken that name, the first digits of the
    revision are added.
    """
    plain = summary_path(results, model, variant)
    own = summary_path(results, f"{model}-{revision[:SHOWN_DIGITS]}", variant)
    if own.exists() or not plain.exists():
        return own if own.exists() else plain
    taken = read_summary(plain)
    same = (taken.model, taken.variant, taken.revision) == (model, variant, revision)
    return plain if same else own


def model_labels(summaries: Sequence[Summary]) -> list[str]:
    """Return a heading for each model. Two models of one name get the digits of their revisions."""
    revisions: dict[str, set[str]] = {}
    for summary in summaries:
        revisions.setdefault(summary.model, set()).add(summary.revision)
    return [
        f"{s.model} ({s.revision[:SHOWN_DIGITS]})" if len(revisions[s.model]) > 1 else s.model
        for s in summaries
    ]


def summary_path(results: Path, model: str, variant: str) -> Path:
    """Return the file of a model's summary. Its name has no spaces and no commas.

    >>> summary_path(Path("results"), "polyvec-mini", "dim 64").as_posix()
    'results/polyvec-mini.dim.64.json'
    >>> summary_path(Path("results"), "my model, second", "").as_posix()
    'results/my-model-second.json'
    """
    stem = re.sub(r"[\s,]+", "-", model)
    return results / f"{'.'.join([stem, *variant.split()])}.json"


def read_summaries(results: Path) -> list[Summary]:
    """Return every summary in a folder of results, sorted by file name.

    Raises ValueError if there is none.
    """
    paths = sorted(results.glob("*.json"))
    if not paths:
        raise ValueError(f"{results} contains no results; `polyvec eval run` writes them")
    return [read_summary(path) for path in paths]


def read_summary(path: Path) -> Summary:
    """Read a file that `write_summary` wrote. Raises ValueError for any other file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        tasks = {name: _task_score(task) for name, task in data.pop("tasks").items()}
        return Summary(**data, tasks=tasks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of results: `polyvec eval run` writes one") from error


def regressions(before: Summary, after: Summary, tasks: Collection[str]) -> list[str]:
    """Return a sentence for each of `tasks` whose score fell below its earlier interval.

    A score without an interval may fall by `ALLOWED_DROP`. Raises ValueError if the summaries have
    no task in common, or if the data or the code of a task changed, because then scores cannot be
    compared.
    """
    common = [name for name in before.tasks if name in tasks and name in after.tasks]
    if not common:
        raise ValueError(f"{before.model} and {after.model} have no task in common to compare")
    sentences = []
    for name in common:
        old, new = before.tasks[name], after.tasks[name]
        if not old.is_comparable(new):
            what = "code" if old.revision == new.revision else "data"
            raise ValueError(
                f"the {what} of {name} changed after the earlier result: score that model again"
            )
        value, low = new.score.value, old.score.low
        lowest = old.score.value - ALLOWED_DROP if low is None else low
        if value < lowest:
            sentences.append(
                f"{after.model} {name}: {100 * value:.1f} is below {100 * lowest:.1f}, the lowest "
                f"accepted score (it was {100 * old.score.value:.1f})"
            )
    return sentences


def write_summary(path: Path, summary: Summary) -> None:
    """Replace `path` in one step, so that a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    text = json.dumps(_rounded(asdict(summary)), indent=1, ensure_ascii=False)
    partial.write_text(f"{text}\n", encoding="utf-8")
    partial.replace(path)


def _task_score(data: dict[str, Any]) -> TaskScore:
    subsets = {name: Score(**score) for name, score in data.pop("subsets").items()}
    draws = tuple(map(int, data.pop("draws", "").split()))
    score = Score(**data.pop("score"))
    return TaskScore(**data, score=score, subsets=subsets, draws=draws)


def _rounded(value: object) -> object:
    if isinstance(value, tuple):
        # Draws take one line of the file instead of two hundred.
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 5) if isinstance(value, float) else value
