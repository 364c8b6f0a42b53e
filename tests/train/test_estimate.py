"""Folds, intervals, advice and warnings."""

import numpy as np
import pytest

from polyvec.train.estimate import (
    ENOUGH_SCORED_ROWS,
    Estimate,
    Score,
    advise,
    choose_folds,
    find_warnings,
    make_folds,
)
from polyvec.train.measures import MEASURES_OF_CLASSES
from polyvec.train.row_formats import ROW_FORMATS

CLASSES = ROW_FORMATS["classification"]
ACCURACY = "accuracy of logistic regression"


def test_no_text_is_in_two_folds_and_every_class_is_in_all_of_them() -> None:
    rows = [{"text": f"Text {i // 3}", "label": str(i // 3 % 4)} for i in range(300)]
    rows[1]["text"] = " text  0"
    folds = make_folds(rows, CLASSES, 0.2, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == [*range(300)]
    keys = [{CLASSES.key(rows[i]) for i in fold} for fold in folds]
    assert len(set.union(*keys)) == sum(map(len, keys)) == 100
    for fold in folds:
        counts = np.unique([rows[i]["label"] for i in fold], return_counts=True)[1]
        assert counts.tolist() == [15] * 4
    again, other = (make_folds(rows, CLASSES, 0.2, seed=seed) for seed in (0, 1))
    assert all((a == b).all() for a, b in zip(folds, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(folds, other, strict=True))


def test_the_only_text_of_a_class_is_in_no_fold() -> None:
    rows = [{"text": str(i), "label": "big"} for i in range(10)] + [{"text": "x", "label": "one"}]
    folds = make_folds(rows, CLASSES, 0.9, seed=0)
    assert len(folds) == 2
    assert sorted(np.concatenate(folds).tolist()) == [*range(10)]


def test_no_more_folds_are_held_out_than_it_takes() -> None:
    folds = [np.arange(400)] * 5
    assert len(choose_folds(folds, 5)) == 3
    assert len(choose_folds(folds, 2)) == 2
    assert len(choose_folds([np.arange(ENOUGH_SCORED_ROWS)] * 5, 5)) == 1
    assert len(choose_folds([np.arange(10)] * 5, 5)) == 5


def guesses(rng: np.random.Generator, size: int, chance: float) -> dict[str, np.ndarray]:
    """Predictions that are right with a probability."""
    gold = rng.choice(["a", "b"], size)
    other = np.where(gold == "a", "b", "a")
    right = rng.random(size) < chance
    return {"gold": gold, "fitted": np.where(right, gold, other), "nearest": gold}


def test_95_of_100_intervals_contain_the_truth_if_rows_are_independent() -> None:
    rng = np.random.default_rng(0)
    hits, widths = 0, []
    for _ in range(60):
        estimate = Estimate({ACCURACY: MEASURES_OF_CLASSES[ACCURACY]}, held_share=0.0)
        for _ in range(2):
            estimate.keys += [str(len(estimate.keys) + i) for i in range(100)]
            estimate.add("mine", guesses(rng, 100, 0.8))
        score = estimate.scores()["mine"][ACCURACY]
        hits += score.low <= 0.8 <= score.high
        widths.append(score.high - score.low)
    assert hits >= 53
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 200), rel=0.1)


def test_intervals_are_wider_if_rows_of_one_key_or_training_rows_are_shared() -> None:
    predictions = guesses(np.random.default_rng(0), 50, 0.8)
    doubled = {name: np.repeat(values, 4) for name, values in predictions.items()}

    def width(keys: list[str], share: float) -> float:
        estimate = Estimate({ACCURACY: MEASURES_OF_CLASSES[ACCURACY]}, held_share=share)
        estimate.keys += keys
        estimate.add("mine", doubled)
        score = estimate.scores()["mine"][ACCURACY]
        return score.high - score.low

    plain = width([str(i) for i in range(200)], 0.0)
    assert width([str(i // 4) for i in range(200)], 0.0) == pytest.approx(2 * plain, rel=0.15)
    assert width([str(i) for i in range(200)], 0.25) == pytest.approx(1.25**0.5 * plain, rel=0.01)


def test_a_difference_on_the_same_rows_is_more_certain_than_both_scores() -> None:
    rng = np.random.default_rng(0)
    old = guesses(rng, 300, 0.8)
    new = {**old, "fitted": np.where(np.arange(300) % 20 == 0, old["gold"], old["fitted"])}
    estimate = Estimate({ACCURACY: MEASURES_OF_CLASSES[ACCURACY]}, held_share=0.25)
    estimate.keys += map(str, range(300))
    estimate.add("old", old)
    estimate.add("new", new)
    scores, difference = estimate.scores(), estimate.differences("new", "old")[ACCURACY]
    assert difference.value == pytest.approx(
        scores["new"][ACCURACY].value - scores["old"][ACCURACY].value
    )
    assert (
        difference.high - difference.low
        < scores["old"][ACCURACY].high - scores["old"][ACCURACY].low
    )


def test_perfect_predictions_are_not_certain() -> None:
    estimate = Estimate({ACCURACY: MEASURES_OF_CLASSES[ACCURACY]}, held_share=0.0)
    estimate.keys += map(str, range(20))
    estimate.add("mine", guesses(np.random.default_rng(0), 20, 1.0))
    score = estimate.scores()["mine"][ACCURACY]
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low < 0.95


@pytest.mark.parametrize(
    ("low", "high", "part"),
    [(0.01, 0.05, ": use it"), (-0.05, -0.01, "is worse"), (-0.01, 0.01, "do not show whether")],
)
def test_advice_follows_the_interval(low: float, high: float, part: str) -> None:
    advice = advise("mine", "none", {"accuracy": Score((low + high) / 2, low, high)})
    assert part in advice
    assert "the model without an adapter" in advice


def test_rows_from_which_little_can_be_learnt_are_warned_of() -> None:
    rows = [{"text": str(i), "label": "most"} for i in range(90)]
    rows += [{"text": f"r{i}", "label": "rare"} for i in range(4)]
    text = " ".join(find_warnings(rows, "classification"))
    assert "'most' has 96 % of the rows" in text
    assert "'rare' (4)" in text
    few = find_warnings([*rows[:9], *rows[-4:]], "classification")
    assert "fewer than 20 rows per class" in few[0]
    assert "50 rows are few" in find_warnings(rows[:50], "pairs")[0]
    even = [{"text": str(i), "label": str(i % 4)} for i in range(400)]
    assert find_warnings(even, "classification") == find_warnings(even, "scored") == []
