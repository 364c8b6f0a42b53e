"""95 % bootstrap intervals: the queries, pairs or texts of a test are resampled and scored again.

The predictions that mteb made for single items are resampled, not the embeddings, so an interval
costs milliseconds. It covers the choice of the test items and nothing else.

Axes in this file: N items of a test, R resamples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pytrec_eval
from jaxtyping import Float, Int
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

NUM_RESAMPLES = 1000

MAX_STORED_DRAWS = 200
"""Scores of resamples that are stored with a result, to compare two models."""

DRAW_SCALE = 10_000
"""Stored draws are whole numbers: scores in 0..1 times this."""

Draws = Float[np.ndarray, " R"]
"""The scores of `NUM_RESAMPLES` resamples of one test."""


def interval(draws: Draws) -> tuple[float, float]:
    """Return the bounds of the middle 95 % of the draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def lead_interval(a: Sequence[int], b: Sequence[int], lead: float) -> tuple[float, float] | None:
    """Return the 95 % interval of `lead`, the difference of two models' scores on one test.

    `a` and `b` are the stored draws of the two models. Both are scores of the same resampled items
    (a paired bootstrap), so items that are hard for both models do not widen the interval. Returns
    None if either model has no draws.
    """
    if not a or len(a) != len(b):
        return None
    half_width = 1.96 * float(np.std(np.subtract(a, b))) / DRAW_SCALE
    return lead - half_width, lead + half_width


def bootstrap_mean(values: Float[np.ndarray, " N"]) -> Draws:
    """Return the mean of each resample, for scores that are the mean of one value per item."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=NUM_RESAMPLES)
    return counts @ values / len(values)


def bootstrap_spearman(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> Draws:
    """Return the rank correlation of each resample of pairs."""
    items = _resample(len(a))
    ranks = [rankdata(values[items], axis=1) for values in (a, b)]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    # In a small test a resample can consist of copies of one pair, which have no correlation.
    return (x * y).sum(1) / np.where(norms > 0, norms, 1)


def bootstrap_average_precision(
    labels: Int[np.ndarray, " N"], scores: Float[np.ndarray, " N"]
) -> Draws:
    """Return the average precision of each resample of pairs with labels 0 and 1."""
    items = _resample(len(labels))
    return np.array([average_precision_score(labels[row], scores[row]) for row in items])


def query_scores(
    measure: str,
    relevant: Mapping[str, Mapping[str, int]],
    ranked: Mapping[str, Mapping[str, float]],
) -> Float[np.ndarray, " N"]:
    """Return the score of each query, in the order of the queries' ids.

    `measure` is trec_eval's name, such as `ndcg_cut.10`. `relevant` and `ranked` map a query to
    its relevant documents and to the scores of the documents that a model returned.
    """
    scores = pytrec_eval.RelevanceEvaluator(relevant, {measure}).evaluate(ranked)
    key = measure.replace(".", "_")
    return np.array([scores[query][key] for query in sorted(scores)])


def match_scores(nearest: Int[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Return the part that each text contributes to mteb's weighted F1 of bitext mining.

    `nearest[i]` is the text that was chosen for text i, and the right one is i. Each text is a
    class of its own: its recall is 1 or 0, and its precision falls with every other text for which
    the same text was chosen.
    """
    times_chosen = np.bincount(nearest, minlength=len(nearest))
    return (nearest == np.arange(len(nearest))) * 2 / (1 + times_chosen)


def _resample(num_items: int) -> Int[np.ndarray, "R N"]:
    return np.random.default_rng(0).integers(num_items, size=(NUM_RESAMPLES, num_items))
