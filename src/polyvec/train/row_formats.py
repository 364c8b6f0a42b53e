"""The three row formats that a user's own adapter can be trained on.

    classification   text, label                              texts of a class should be similar
    pairs            query, positive[, negatives][, group]    a query should find its positive
    scored           text1, text2, score                      cosines should follow the scores

A row format defines its columns, the training objective, and how a model is scored on held-out
rows. `negatives` is a list of texts (in CSV, a single text) that resemble the positive and are
wrong. Pairs of one `group` mean the same thing.

Axes in this file: N texts, C classes, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from polyvec.network import Network
from polyvec.records import Columns, Record, as_label, as_number, as_text, as_texts
from polyvec.train.data.batches import Plan
from polyvec.train.data.tokens import TokenIds
from polyvec.train.loop import StepFn
from polyvec.train.losses import matryoshka
from polyvec.train.objectives import contrast, embed, ordering

MAX_TEXTS_PER_CLASS = 32
"""Texts of a class whose mean is the first value of the class's vector."""

Tokenise = Callable[[list[str]], TokenIds]
"""Token ids of texts, each behind the task's instruction."""

Encode = Callable[[list[str]], Float32[np.ndarray, "N D"]]
"""Embeddings of texts, as unit vectors."""

Objective = tuple[StepFn, dict[str, nn.Parameter]]
"""A step function, and the parameters that it trains in addition to the adapter."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """All properties in which the row formats differ."""

    columns: Columns
    """The columns of a row."""

    roles: Mapping[str, str]
    """The column that is the text, the label and the query of a row, as far as it has these."""

    key: Callable[[Record], str]
    """Rows with the same key are held out together or not at all."""

    stratum: Callable[[Record], str]
    """The same fraction of every stratum is held out."""

    check: Callable[[Sequence[Record]], None]
    """Raises ValueError for rows from which nothing can be learnt."""

    make_objective: Callable[[Network, Tokenise, Sequence[Record], Plan], Objective]
    """Makes the training objective of an adapter."""

    measure: str
    """Name of the score."""

    score: Callable[[Encode, Sequence[Record], Sequence[Record]], float]
    """Scores embeddings between 0 and 1, given the training rows and the held-out rows."""


def class_vectors(
    network: Network, texts: TokenIds, labels: Int[np.ndarray, " N"]
) -> Float32[Tensor, "C D"]:
    """Mean embedding of the first `MAX_TEXTS_PER_CLASS` texts of each class, with adapter 0."""
    means = []
    with torch.inference_mode():
        for label in range(labels.max() + 1):
            own = [texts[i] for i in np.flatnonzero(labels == label)[:MAX_TEXTS_PER_CLASS]]
            means.append(F.normalize(embed(network, own, 0), dim=-1).mean(0))
    # Tensors made in inference mode cannot be trained, so these are copied outside of it.
    return F.normalize(torch.stack(means), dim=-1).clone()


def class_loss(
    vectors: Float[Tensor, "N D"],
    classes: Float[Tensor, "C D"],
    *,
    labels: Int[Tensor, " N"],
    temperature: float = 0.05,
) -> Float[Tensor, ""]:
    """Cross-entropy of each text's class under a softmax of its cosines with all classes."""
    return F.cross_entropy(vectors @ classes.T / temperature, labels)


def class_objective(
    network: Network, tokenise: Tokenise, rows: Sequence[Record], plan: Plan
) -> Objective:
    """Train texts towards the vector of their class, which is learnt too and then discarded.

    With few classes this is better than the paper's tuples, because every text is compared with
    every class in every step.
    """
    texts = tokenise([row["text"] for row in rows])
    labels = np.unique([row["label"] for row in rows], return_inverse=True)[1]
    classes = nn.Parameter(class_vectors(network, texts, labels))
    nested = matryoshka(class_loss, network.config.dims)

    def step_fn(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        batch = [texts[i] for i in chosen]
        gold = torch.from_numpy(labels[chosen])
        loss = nested(embed(network, batch, 0), classes, labels=gold)
        loss.backward()
        return loss.detach(), sum(len(text) for text in batch)

    return step_fn, {"classes": classes}


def pair_objective(
    network: Network, tokenise: Tokenise, rows: Sequence[Record], plan: Plan
) -> Objective:
    """Train each query to find its positive among those of the step (`contrast`)."""
    negatives = [row["negatives"] or [] for row in rows]
    flat = iter(tokenise([text for texts in negatives for text in texts]))
    groups = np.unique([pair_group(row) for row in rows], return_inverse=True)[1]
    step_fn = contrast(
        network,
        tokenise([row["query"] for row in rows]),
        tokenise([row["positive"] for row in rows]),
        groups,
        plan,
        adapter_ids=(0, 0),
        negatives=[[next(flat) for _ in texts] for texts in negatives],
    )
    return step_fn, {}


def score_objective(
    network: Network, tokenise: Tokenise, rows: Sequence[Record], plan: Plan
) -> Objective:
    """Train pairs with higher scores to have higher cosines (`ordering`)."""
    left, right = (tokenise([row[name] for row in rows]) for name in ("text1", "text2"))
    scores = np.array([row["score"] for row in rows], np.float32)
    return ordering(network, left, right, scores, plan, adapter_id=0), {}


def score_classes(
    encode: Encode, train_rows: Sequence[Record], held_out: Sequence[Record]
) -> float:
    """Accuracy on held-out rows of logistic regression, fitted to the training rows."""
    gold = [row["label"] for row in train_rows]
    vectors = encode([row["text"] for row in train_rows])
    model = LogisticRegression(max_iter=1_000).fit(vectors, gold)
    predicted = model.predict(encode([row["text"] for row in held_out]))
    return float(np.mean(predicted == np.array([row["label"] for row in held_out])))


def score_pairs(encode: Encode, train_rows: Sequence[Record], held_out: Sequence[Record]) -> float:
    """nDCG@10 of each query's positive among all held-out positives."""
    documents = [*dict.fromkeys(row["positive"] for row in held_out)]
    place = {text: i for i, text in enumerate(documents)}
    right = np.array([place[row["positive"]] for row in held_out])
    cosines = encode([row["query"] for row in held_out]) @ encode(documents).T
    own = cosines[np.arange(len(held_out)), right]
    # A document with an equal cosine ranks before the positive, so that embeddings which are all
    # equal find nothing.
    rank = (cosines >= own[:, None]).sum(1)
    return float(np.where(rank <= 10, 1 / np.log2(rank + 1.0), 0).mean())


def score_order(encode: Encode, train_rows: Sequence[Record], held_out: Sequence[Record]) -> float:
    """Spearman's correlation of cosines and scores; 0 if all scores are equal."""
    left, right = (encode([row[name] for row in held_out]) for name in ("text1", "text2"))
    gold = [row["score"] for row in held_out]
    if len({*gold}) < 2:
        return 0.0
    return float(np.asarray(spearmanr((left * right).sum(1), gold))[0])


def pair_group(row: Record) -> str:
    """The group of a pair: its column `group`, or else its positive."""
    return row["group"] or row["positive"]


def check_classes(rows: Sequence[Record]) -> None:
    """Raise ValueError if there are fewer than two classes."""
    if len({row["label"] for row in rows}) < 2:
        raise ValueError(f"all labels are {rows[0]['label']!r}; at least two classes are needed")


def check_pairs(rows: Sequence[Record]) -> None:
    """Raise ValueError if there are fewer than two groups."""
    if len({pair_group(row) for row in rows}) < 2:
        raise ValueError(
            "all pairs have the same group or the same positive; at least two groups are needed"
        )


def check_scores(rows: Sequence[Record]) -> None:
    """Raise ValueError if there are fewer than two scores."""
    if len({row["score"] for row in rows}) < 2:
        raise ValueError(f"all scores are {rows[0]['score']}; at least two scores are needed")


ROW_FORMATS = {
    "classification": RowFormat(
        columns=Columns(needed={"text": as_text, "label": as_label}),
        roles={"text": "text", "label": "label"},
        key=lambda row: " ".join(row["text"].split()).casefold(),
        stratum=lambda row: row["label"],
        check=check_classes,
        make_objective=class_objective,
        measure="accuracy of logistic regression",
        score=score_classes,
    ),
    "pairs": RowFormat(
        columns=Columns(
            needed={"query": as_text, "positive": as_text},
            optional={"negatives": as_texts, "group": as_label},
        ),
        roles={"query": "query", "text": "positive"},
        key=pair_group,
        stratum=lambda row: "",
        check=check_pairs,
        make_objective=pair_objective,
        measure="nDCG@10",
        score=score_pairs,
    ),
    "scored": RowFormat(
        columns=Columns(needed={"text1": as_text, "text2": as_text, "score": as_number}),
        roles={"label": "score"},
        key=lambda row: row["text1"],
        stratum=lambda row: "",
        check=check_scores,
        make_objective=score_objective,
        measure="Spearman's correlation",
        score=score_order,
    ),
}
