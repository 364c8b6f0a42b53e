"""What embeddings predict for held-out rows, and the scores of predictions between 0 and 1.

A prediction has one entry per held-out row, so rows can be drawn again to see how much a score
depends on chance (`polyvec.train.estimate`).

Axes in this file: N rows or texts, D width.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from polyvec.records import Record

Encode = Callable[[list[str], int], Float32[np.ndarray, "N D"]]
"""Embeddings of texts, as unit vectors, with the task of a side."""

Predictions = Mapping[str, np.ndarray]
"""Arrays with one entry per held-out row."""

Predict = Callable[[Encode, Sequence[Record], Sequence[Record]], Predictions]
"""The predictions for held-out rows, the last argument, given the other rows."""

Measure = Callable[[Predictions], float]

MAX_CANDIDATES = 5_000
"""Texts among which a query looks for its positive."""


def predict_classes(
    encode: Encode, train_rows: Sequence[Record], held_out: Sequence[Record]
) -> Predictions:
    """The class by logistic regression on the training rows, and that of the nearest of them."""
    labels = np.array([row["label"] for row in train_rows])
    known = encode([row["text"] for row in train_rows], 0)
    vectors = encode([row["text"] for row in held_out], 0)
    model = LogisticRegression(max_iter=1_000).fit(known, labels)
    return {
        "gold": np.array([row["label"] for row in held_out]),
        "fitted": np.asarray(model.predict(vectors)),
        "nearest": labels[(vectors @ known.T).argmax(1)],
    }


def predict_pairs(
    encode: Encode,
    train_rows: Sequence[Record],
    held_out: Sequence[Record],
    *,
    passage_side: int = 0,
) -> Predictions:
    """The rank of each query's positive among the positives of all rows.

    Other answers to the query, which are positives of its group or of an equal query, are not
    counted.
    """
    rows = [*held_out, *train_rows]
    documents = [*dict.fromkeys(row["positive"] for row in rows)][:MAX_CANDIDATES]
    place = {text: i for i, text in enumerate(documents)}
    answers: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        if row["positive"] in place:
            for key in (("group", pair_group(row)), ("query", row["query"])):
                answers.setdefault(key, set()).add(place[row["positive"]])
    right = np.array([place[row["positive"]] for row in held_out])
    queries = encode([row["query"] for row in held_out], 0)
    cosines = queries @ encode(documents, passage_side).T
    own = cosines[np.arange(len(held_out)), right]
    for i, row in enumerate(held_out):
        others = answers["group", pair_group(row)] | answers["query", row["query"]]
        cosines[i, [*(others - {int(right[i])})]] = -np.inf
    # A document with an equal cosine ranks before the positive, so that embeddings which are all
    # equal find nothing.
    return {"rank": (cosines >= own[:, None]).sum(1)}


def predict_order(
    encode: Encode, train_rows: Sequence[Record], held_out: Sequence[Record]
) -> Predictions:
    """The cosine of each pair."""
    left, right = (encode([row[name] for row in held_out], 0) for name in ("text1", "text2"))
    return {
        "gold": np.array([row["score"] for row in held_out]),
        "cosine": (left * right).sum(1),
    }


def pair_group(row: Record) -> str:
    """The group of a pair: its column `group`, or else its positive."""
    return row["group"] or row["positive"]


def accuracy(predictions: Predictions, name: str) -> float:
    """Share of the rows whose predicted class is right."""
    return float(np.mean(predictions["gold"] == predictions[name]))


def macro_f1(predictions: Predictions, name: str) -> float:
    """Mean F1 of all classes that occur, each of which counts as much as any other."""
    both = np.concatenate([predictions["gold"], predictions[name]])
    gold, found = np.split(np.unique(both, return_inverse=True)[1], 2)
    size = int(max(gold.max(), found.max())) + 1
    right = np.bincount(gold[gold == found], minlength=size)
    total = np.bincount(gold, minlength=size) + np.bincount(found, minlength=size)
    there = total > 0
    return float(np.mean(2 * right[there] / total[there]))


def ndcg(predictions: Predictions) -> float:
    """nDCG@10 with one right answer per query."""
    rank = predictions["rank"]
    return float(np.where(rank <= 10, 1 / np.log2(rank + 1.0), 0).mean())


def first_place(predictions: Predictions) -> float:
    """Share of the queries whose positive is the first of all texts."""
    return float(np.mean(predictions["rank"] == 1))


def spearman(predictions: Predictions) -> float:
    """Spearman's correlation of cosines and scores; 0 if all scores are equal.

    It is the mean over the folds, because the cosines of two adapters are not comparable.
    """
    cosines, gold = predictions["cosine"], predictions["gold"]
    folds = predictions.get("fold", np.zeros(len(gold)))
    total = 0.0
    for fold in np.unique(folds):
        own = folds == fold
        if np.ptp(gold[own]) > 0 and np.ptp(cosines[own]) > 0:
            total += own.mean() * float(np.asarray(spearmanr(cosines[own], gold[own]))[0])
    return total


MEASURES_OF_CLASSES: Mapping[str, Measure] = {
    "accuracy of logistic regression": lambda found: accuracy(found, "fitted"),
    "macro-F1 of logistic regression": lambda found: macro_f1(found, "fitted"),
    "accuracy of the nearest neighbour": lambda found: accuracy(found, "nearest"),
}

MEASURES_OF_PAIRS: Mapping[str, Measure] = {
    "nDCG@10": ndcg,
    "positive in first place": first_place,
}

MEASURES_OF_ORDER: Mapping[str, Measure] = {"Spearman's correlation": spearman}
