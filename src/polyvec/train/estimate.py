"""How good a new task will be: scores of held-out rows with intervals, advice and warnings.

1. Divide the rows into folds, so that no key is in two folds and every stratum is in all of them.
2. Hold out one fold after another, train on the others, and predict the rows of the fold.
3. Score all predictions together. Draw the rows again, with replacement, to find the standard error
   of each score, and of the difference of two tasks on the same rows.

The rows that two folds train on are nearly the same, which makes plain intervals too narrow. The
standard error is therefore multiplied by the square root of 1 + (rows held out) / (rows trained
on), which is the correction of Nadeau & Bengio (2003, Machine Learning 52:239-281).

Axes in this file: N rows.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from polyvec.records import Record
from polyvec.train.measures import Measure, Predictions
from polyvec.train.row_formats import RowFormat

NUM_DRAWS = 400
"""Times that the rows are drawn again."""

Z = 1.96
"""Half the width of a 95 % interval, in standard errors."""

ENOUGH_SCORED_ROWS = 1_000
"""No further fold is held out once this many rows are scored."""

MIN_ROWS = 200
"""Fewer rows than this are too few to learn from, unless they are very alike."""

MIN_ROWS_PER_CLASS = 20
"""Classes with fewer rows than this on average are better learnt by a logistic regression."""

MIN_ROWS_OF_A_CLASS = 10
"""A class with fewer rows than this is named in a warning."""

MAX_SHARE_OF_A_CLASS = 0.8
"""A class with a larger share of the rows makes the accuracy look good."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score with its 95 % interval, between 0 and 1, or a difference of two scores."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


def make_folds(
    rows: Sequence[Record], row_format: RowFormat, fraction: float, seed: int
) -> list[Int[np.ndarray, " _rows"]]:
    """Numbers of the rows of each fold, which has about `fraction` of the keys of every stratum.

    There are at least two folds. A key that is the only one of its stratum is in no fold, because
    nothing could be learnt of it while it is held out.
    """
    strata: dict[str, dict[str, None]] = {}
    owner: dict[str, str] = {}
    for row in rows:
        key = row_format.key(row)
        strata.setdefault(owner.setdefault(key, row_format.stratum(row)), {})[key] = None
    num_folds = max(2, round(1 / fraction))
    rng = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    for stratum in sorted(strata):
        keys = list(strata[stratum])
        if len(keys) > 1:
            # Small strata begin at a random fold, so that the folds have similar sizes.
            turns = (rng.permutation(len(keys)) + rng.integers(num_folds)) % num_folds
            fold_of |= dict(zip(keys, turns.tolist(), strict=True))
    numbers = np.array([fold_of.get(row_format.key(row), -1) for row in rows])
    folds = [np.flatnonzero(numbers == fold) for fold in range(num_folds)]
    return [fold for fold in folds if len(fold)]


def choose_folds(
    folds: Sequence[Int[np.ndarray, " _rows"]], most: int
) -> list[Int[np.ndarray, " _rows"]]:
    """The folds to hold out: at most `most`, and no more than it takes to score enough rows."""
    ends = np.cumsum([len(fold) for fold in folds])
    needed = 1 + int(np.searchsorted(ends, ENOUGH_SCORED_ROWS))
    return list(folds[: min(most, needed)])


class Estimate:
    """Predictions of several tasks for the same held-out rows, fold after fold."""

    def __init__(self, measures: Mapping[str, Measure], *, held_share: float) -> None:
        """`held_share` is the number of rows held out, divided by that of rows trained on."""
        self.measures = measures
        self.width = Z * math.sqrt(1 + held_share)
        self.keys: list[str] = []
        self.predictions: dict[str, list[Predictions]] = {}

    @property
    def num_rows(self) -> int:
        """Number of rows that were held out."""
        return len(self.keys)

    def add(self, task: str, predictions: Predictions) -> None:
        """Add the predictions of a task for the next fold."""
        folds = self.predictions.setdefault(task, [])
        size = len(next(iter(predictions.values())))
        folds.append({**predictions, "fold": np.full(size, len(folds))})

    def scores(self) -> dict[str, dict[str, Score]]:
        """The scores of each task, by the name of the measure."""
        return {
            task: {name: self._interval([task], measure) for name, measure in self.measures.items()}
            for task in self.predictions
        }

    def differences(self, task: str, other: str) -> dict[str, Score]:
        """Each score of a task, less that of another task on the same rows."""
        pair = [task, other]
        return {name: self._interval(pair, measure) for name, measure in self.measures.items()}

    def _interval(self, tasks: Sequence[str], measure: Measure) -> Score:
        """The interval of the score of one task, or of the difference of two."""
        columns = [_join(self.predictions[task]) for task in tasks]
        rng = np.random.default_rng(0)
        groups = _group_rows(self.keys)
        value = _score(columns, np.arange(self.num_rows), measure)
        draws = [_score(columns, _draw(groups, rng), measure) for _ in range(NUM_DRAWS)]
        # If all predictions are right, the draws do not differ, but new rows might.
        error = max(float(np.std(draws)), 1 / (self.num_rows + 2))
        low, high = value - self.width * error, value + self.width * error
        return Score(value, max(low, -1.0), min(high, 1.0))


def _join(folds: Sequence[Predictions]) -> Predictions:
    return {name: np.concatenate([fold[name] for fold in folds]) for name in folds[0]}


def _score(columns: Sequence[Predictions], rows: np.ndarray, measure: Measure) -> float:
    """The score of some rows, or the first task's score less the second one's."""
    found = [measure({name: values[rows] for name, values in c.items()}) for c in columns]
    return found[0] - sum(found[1:])


def _group_rows(keys: Sequence[str]) -> list[np.ndarray]:
    """Numbers of the rows of each key: rows of one key are drawn together."""
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return [np.array(group) for group in groups.values()]


def _draw(groups: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])


def advise(task: str, other: str, differences: Mapping[str, Score]) -> str:
    """One sentence: whether the new task is better than the task that it started from."""
    old = "the model without an adapter" if other == "none" else f"the task {other}"
    better = [name for name, score in differences.items() if score.low > 0]
    worse = [name for name, score in differences.items() if score.high < 0]
    if better and not worse:
        return f"The task {task} is better than {old} by {' and '.join(better)}: use it."
    if worse and not better:
        return (
            f"The task {task} is worse than {old} by {' and '.join(worse)}: use {old}, or train "
            "with more rows or a lower learning rate."
        )
    if better:
        return (
            f"The task {task} is better than {old} by {' and '.join(better)}, and worse by "
            f"{' and '.join(worse)}: use it for the former only."
        )
    return (
        f"The rows do not show whether the task {task} is better than {old}: use {old}, or train "
        "with more rows."
    )


def find_warnings(rows: Sequence[Record], kind: str) -> list[str]:
    """Sentences on data from which little can be learnt: too few rows, and unequal classes."""
    warnings = []
    if kind != "classification":
        if len(rows) < MIN_ROWS:
            warnings.append(
                f"{len(rows):,} rows are few: with fewer than {MIN_ROWS}, the adapter learns "
                "little and the scores are uncertain"
            )
        return warnings
    counts = Counter(row["label"] for row in rows)
    if len(rows) < MIN_ROWS_PER_CLASS * len(counts):
        warnings.append(
            f"{len(rows):,} rows of {len(counts):,} classes are few: with fewer than "
            f"{MIN_ROWS_PER_CLASS} rows per class, a logistic regression on the original "
            "embeddings is better"
        )
    [(largest, most)] = counts.most_common(1)
    if most > MAX_SHARE_OF_A_CLASS * len(rows):
        warnings.append(
            f"the class {largest!r:.60} has {100 * most / len(rows):.0f} % of the rows, so whoever "
            "always says it is right that often: look at macro-F1"
        )
    rare = [label for label, count in counts.items() if count < MIN_ROWS_OF_A_CLASS]
    if rare and len(rare) < len(counts):
        names = ", ".join(f"{label!r:.60} ({counts[label]})" for label in rare[:5])
        more = f" and {len(rare) - 5} others" if len(rare) > 5 else ""
        warnings.append(
            f"the classes are unequal: {names}{more} have fewer than {MIN_ROWS_OF_A_CLASS} rows"
        )
    return warnings
