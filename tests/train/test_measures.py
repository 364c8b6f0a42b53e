"""Scores of predictions, compared with their definitions."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from polyvec.train.measures import (
    MEASURES_OF_CLASSES,
    MEASURES_OF_ORDER,
    MEASURES_OF_PAIRS,
    predict_classes,
    predict_order,
    predict_pairs,
)

TABLE = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)


def encode(texts: list[str], side: int) -> np.ndarray:
    vectors = TABLE[[int(text) for text in texts]]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pair(query: int, positive: int, group: str | None = None) -> dict:
    return {"query": str(query), "positive": str(positive), "group": group}


def test_classes_are_scored_by_their_definitions() -> None:
    rows = [{"text": str(i), "label": "ab"[int(TABLE[i, 0] > 0.5)]} for i in range(60)]
    seen, held = rows[:40], rows[40:]
    gold = [row["label"] for row in held]
    known, new = (encode([row["text"] for row in part], 0) for part in (seen, held))
    fitted = LogisticRegression(max_iter=1_000).fit(known, [row["label"] for row in seen])
    found = fitted.predict(new)
    nearest = [seen[int(np.argmax(known @ vector))]["label"] for vector in new]
    predictions = predict_classes(encode, seen, held)
    scores = {name: measure(predictions) for name, measure in MEASURES_OF_CLASSES.items()}
    assert scores == pytest.approx(
        {
            "accuracy of logistic regression": np.mean(found == gold),
            "macro-F1 of logistic regression": f1_score(gold, found, average="macro"),
            "accuracy of the nearest neighbour": np.mean(np.array(nearest) == gold),
        }
    )


def test_pairs_are_ranked_among_the_positives_of_all_rows() -> None:
    rows = [pair(i, 59 - i) for i in range(30)]
    seen, held = rows[:10], rows[10:]
    gains, first = [], []
    for row in held:
        own = encode([row["query"]], 0)[0]
        order = sorted(rows, key=lambda r: -float(own @ encode([r["positive"]], 0)[0]))
        rank = order.index(row) + 1
        gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0)
        first.append(rank == 1)
    predictions = predict_pairs(encode, seen, held)
    assert MEASURES_OF_PAIRS["nDCG@10"](predictions) == pytest.approx(np.mean(gains))
    assert MEASURES_OF_PAIRS["positive in first place"](predictions) == np.mean(first)


def test_other_answers_to_a_query_do_not_count_against_it() -> None:
    """One has the query's group, one an equal query; a third text is nearer than the positive."""
    near = np.argsort(-(encode([str(i) for i in range(60)], 0) @ encode(["0"], 0)[0]))[1:]
    group, same, wrong, own = (int(i) for i in near[:4])
    held = [pair(0, own, "g")]
    rows = [pair(40, group, "g"), pair(0, same), pair(41, wrong)]
    assert predict_pairs(encode, rows, held)["rank"].tolist() == [2]


def test_equal_cosines_find_nothing() -> None:
    rows = [pair(i, 59 - i) for i in range(30)]
    flat = predict_pairs(lambda texts, side: np.ones((len(texts), 1), np.float32), [], rows)
    assert MEASURES_OF_PAIRS["nDCG@10"](flat) == 0


def test_spearmans_correlation_is_a_mean_over_folds() -> None:
    spearman = MEASURES_OF_ORDER["Spearman's correlation"]
    rows = [{"text1": str(i), "text2": str(i + 30)} for i in range(30)]
    for row in rows:
        row["score"] = float(encode([row["text1"]], 0)[0] @ encode([row["text2"]], 0)[0])
    right = predict_order(encode, [], rows)
    assert spearman(right) == pytest.approx(1)
    # Another fold has cosines in another range, and is ordered as perfectly.
    both = {name: np.concatenate([values, values]) for name, values in right.items()}
    both["cosine"][30:] += 5
    both["fold"] = np.repeat([0, 1], 30)
    assert spearman(both) == pytest.approx(1)
    assert spearman({"gold": np.ones(5), "cosine": np.arange(5.0)}) == 0
