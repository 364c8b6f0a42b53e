"""Intervals contain the score, and compare models on the same items."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from polyvec.eval import MtebEncoder
from polyvec.eval.baselines import model_meta
from polyvec.eval.intervals import (
    bootstrap_mean,
    bootstrap_spearman,
    interval,
    lead_interval,
    query_scores,
)
from tests.eval.synthetic import embed, score_task, sts_folder


def test_an_interval_contains_the_score_and_narrows_with_more_items() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.random(50), rng.random(5000)
    low, high = interval(bootstrap_mean(few))
    assert low < few.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * few.std() / 50**0.5, rel=0.15)
    assert np.diff(interval(bootstrap_mean(many))) < 0.2 * (high - low)
    x = rng.normal(size=300)
    y = x + rng.normal(size=300)
    low, high = interval(bootstrap_spearman(x, y))
    assert low < spearmanr(x, y).statistic < high < low + 0.2


def test_query_scores_follow_the_ranking() -> None:
    relevant = {"q": {"a": 1}}
    ranked = {"q": {"b": 0.9, "a": 0.8, "c": 0.1}}
    assert query_scores("ndcg_cut.10", relevant, ranked) == pytest.approx([1 / np.log2(3)])
    assert query_scores("ndcg_cut.1", relevant, ranked) == [0]


def test_two_models_draws_are_of_the_same_items(tmp_path: Path) -> None:
    better = score_task(sts_folder(tmp_path))
    worse = score_task(
        tmp_path, MtebEncoder(lambda t, a: embed(t)[:, :6], model_meta("worse", "1"))
    )
    value = better.score.value - worse.score.value
    paired = lead_interval(better.draws, worse.draws, value)
    assert paired is not None
    # By hand: resample the pairs of each language once for both models.
    rows = pq.read_table(tmp_path / "eval/sts/pairs.parquet").to_pylist()
    draws = []
    for lang in ("de", "en"):
        part = [row for row in rows if row["lang"] == lang]
        a, b = (embed([row[side] for row in part]) for side in ("text1", "text2"))
        gold = np.array([row["score"] for row in part])
        rng = np.random.default_rng(7)
        picks = rng.integers(len(part), size=(2000, len(part)))
        draws.append(
            [
                spearmanr((a * b).sum(1)[pick], gold[pick]).statistic
                - spearmanr((a * b)[:, :6].sum(1)[pick], gold[pick]).statistic
                for pick in picks
            ]
        )
    spread = np.mean(draws, axis=0).std()
    assert paired[1] - paired[0] == pytest.approx(2 * 1.96 * spread, rel=0.2)
    assert np.mean(paired) == pytest.approx(value)
    assert lead_interval(better.draws, (), value) is None
