"""95 % intervals: resample the queries, pairs or texts of a test, and score each resample.

What mteb predicted for each item is resampled, never the vectors, so an interval costs
milliseconds. It covers the choice of test items, and no other choice.

Axes in this file: N items of a test, R resamples, E experiments of a classification test.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytrec_eval
from jaxtyping import Float, Int
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

RESAMPLES = 1000

KEPT_DRAWS = 200
"""As many are kept for comparing two models."""

Draws = Float[np.ndarray, " R"]
"""The scores of `RESAMPLES` resamples of one test."""

TestData = Any
"""A subset's test data as mteb holds it: a `datasets.Dataset`, or a dict of them."""

Predicted = Any
"""What mteb wrote for a subset in its prediction folder: plain JSON."""


def interval(draws: Draws) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def difference(a: Sequence[int], b: Sequence[int], value: float) -> tuple[float, float] | None:
    """The 95 % interval of `value`, the lead of one model over another on the same test.

    `a` and `b` are the two models' kept draws, of the same items (a paired bootstrap): what is
    hard for both cancels. None where either has none.
    """
    if not a or len(a) != len(b):
        return None
    spread = 1.96 * float(np.std(np.subtract(a, b))) / 10_000
    return value - spread, value + spread


def mean_draws(values: Float[np.ndarray, " N"]) -> Draws:
    """For scores that are the mean of one value an item."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    return counts @ values / len(values)


def spearman_draws(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> Draws:
    """Rank correlations of resampled pairs."""
    items = _resamples(len(a))
    ranks = [rankdata(values[items], axis=1) for values in (a, b)]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    spread = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    # In a small test a resample can be one pair many times over, which has no correlation.
    return (x * y).sum(1) / np.where(spread > 0, spread, 1)


def query_scores(
    metric: str, relevant: Mapping[str, Mapping[str, int]], found: Mapping[str, Mapping[str, float]]
) -> Float[np.ndarray, " N"]:
    """Each query's nDCG; `metric` is mteb's name, such as `ndcg_at_10`."""
    depth = metric.removeprefix("ndcg_at_")
    evaluator = pytrec_eval.RelevanceEvaluator(relevant, {f"ndcg_cut.{depth}"})
    scores = evaluator.evaluate(found)
    return np.array([scores[query][f"ndcg_cut_{depth}"] for query in sorted(scores)])


def match_scores(nearest: Int[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """What each text adds to mteb's weighted F1, when text i belongs to text i.

    Each text is a class of its own: recall is 1 or 0, and precision falls with every other text
    that chose the same partner.
    """
    chosen = np.bincount(nearest, minlength=len(nearest))
    return (nearest == np.arange(len(nearest))) * 2 / (1 + chosen)


def _sts(metric: str, data: TestData, predicted: Predicted) -> Draws:
    return spearman_draws(np.array(data["score"]), np.array(predicted["cosine_scores"]))


def _pair_classification(metric: str, data: TestData, predicted: Predicted) -> Draws:
    labels, scores = np.array(data["labels"]), np.array(predicted["cosine_scores"])
    items = _resamples(len(labels))
    return np.array([average_precision_score(labels[row], scores[row]) for row in items])


def _bitext(metric: str, data: TestData, predicted: Predicted) -> Draws:
    nearest = [match["corpus_id"] for match in predicted["sentence1-sentence2"]]
    return mean_draws(match_scores(np.array(nearest)))


def _retrieval(metric: str, data: TestData, predicted: Predicted) -> Draws:
    return mean_draws(query_scores(metric, data["relevant_docs"], predicted))


def _classification(metric: str, data: TestData, predicted: Predicted) -> Draws:
    right_EN = np.array(predicted) == np.array(data["label"])
    return mean_draws(right_EN.mean(0))


DRAWS: dict[str, Callable[[str, TestData, Predicted], Draws]] = {
    "STS": _sts,
    "PairClassification": _pair_classification,
    "BitextMining": _bitext,
    "Retrieval": _retrieval,
    "Classification": _classification,
}
"""By mteb's task type: functions of the main score's name, the data and the predictions.
Clustering is absent: its score has no value for a single text."""


def _resamples(num_items: int) -> Int[np.ndarray, "R N"]:
    return np.random.default_rng(0).integers(num_items, size=(RESAMPLES, num_items))
