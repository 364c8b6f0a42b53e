"""The three kinds of rows that a user's own adapter learns from.

    classification   text, label                              texts of a class should be alike
    pairs            query, positive[, negatives][, group]    a text should find its partner
    scored           text1, text2, score                      cosines should follow the scores

A kind says how its rows are read, what one step of training computes, and how a model is scored
on rows it has not seen. `negatives` is a list of texts (in CSV a single one) that look like the
positive and are none; pairs of one `group` mean the same thing.

Axes in this file: N texts, C classes, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from polyvec.network import Network
from polyvec.records import Columns, as_label, as_number, as_text, as_texts
from polyvec.records import Record as Row
from polyvec.train.loop import Work
from polyvec.train.losses import matryoshka
from polyvec.train.objectives import Tokens, contrast, embed, ordering

Plan = Sequence[Int[np.ndarray, " _rows"]]
"""The rows of every step."""

Read = Callable[[list[str]], Tokens]
"""Token ids of texts, the task's instruction before each."""

Encode = Callable[[list[str]], Float32[np.ndarray, "N D"]]
"""Unit vectors of texts."""

Parts = tuple[Work, dict[str, nn.Parameter]]
"""What a step computes, and what it trains besides the adapter."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Everything that differs between the kinds."""

    columns: Columns
    key: Callable[[Row], str]
    """Rows with one key are kept back together or not at all."""

    stratum: Callable[[Row], str]
    """Of each of these the same part is kept back."""

    check: Callable[[Sequence[Row]], None]
    """Raises ValueError for rows that teach nothing."""

    make_work: Callable[[Network, Read, Sequence[Row], Plan], Parts]
    measure: str
    score: Callable[[Encode, Sequence[Row], Sequence[Row]], float]
    """How well vectors serve rows kept back, between 0 and 1, given the rows trained on."""


def class_vectors(
    network: Network, texts: Tokens, labels: Int[np.ndarray, " N"], *, most: int = 32
) -> Float32[Tensor, "C D"]:
    """For each class the mean vector of its first `most` texts, read by adapter 0."""
    means = []
    with torch.inference_mode():
        for label in range(labels.max() + 1):
            mine = [texts[i] for i in np.flatnonzero(labels == label)[:most]]
            means.append(F.normalize(embed(network, mine, 0), dim=-1).mean(0))
    # Outside of inference mode, so that they can be trained.
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


def classify(network: Network, read: Read, rows: Sequence[Row], plan: Plan) -> Parts:
    """Texts go to their class's vector, which is learnt beside the adapter and then dropped.

    Against a text of the same class and texts of others, the paper's way, this wins where classes
    are few: every text meets every class in every step.
    """
    texts = read([row["text"] for row in rows])
    labels = np.unique([row["label"] for row in rows], return_inverse=True)[1]
    classes = nn.Parameter(class_vectors(network, texts, labels))
    nested = matryoshka(class_loss, network.config.dims)

    def work(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        batch = [texts[i] for i in chosen]
        gold = torch.from_numpy(labels[chosen])
        loss = nested(embed(network, batch, 0), classes, labels=gold)
        loss.backward()
        return loss.detach(), sum(len(text) for text in batch)

    return work, {"classes": classes}


def pair(network: Network, read: Read, rows: Sequence[Row], plan: Plan) -> Parts:
    """Each query finds its positive among those of the batch (`contrast`)."""
    negatives = [row["negatives"] or [] for row in rows]
    flat = iter(read([text for texts in negatives for text in texts]))
    groups = np.unique([pair_group(row) for row in rows], return_inverse=True)[1]
    work = contrast(
        network,
        read([row["query"] for row in rows]),
        read([row["positive"] for row in rows]),
        groups,
        plan,
        rows=(0, 0),
        negatives=[[next(flat) for _ in texts] for texts in negatives],
    )
    return work, {}


def order(network: Network, read: Read, rows: Sequence[Row], plan: Plan) -> Parts:
    """Pairs with higher scores get higher cosines (`ordering`)."""
    left, right = (read([row[name] for row in rows]) for name in ("text1", "text2"))
    scores = np.array([row["score"] for row in rows], np.float32)
    return ordering(network, left, right, scores, plan, row=0), {}


def score_classes(encode: Encode, seen: Sequence[Row], held: Sequence[Row]) -> float:
    """Accuracy of logistic regression on the vectors, fitted to the rows trained on."""
    gold = [row["label"] for row in seen]
    model = LogisticRegression(max_iter=1_000).fit(encode([row["text"] for row in seen]), gold)
    found = model.predict(encode([row["text"] for row in held]))
    return float(np.mean(found == np.array([row["label"] for row in held])))


def score_pairs(encode: Encode, seen: Sequence[Row], held: Sequence[Row]) -> float:
    """nDCG@10 of each query's positive among all positives kept back."""
    documents = [*dict.fromkeys(row["positive"] for row in held)]
    place = {text: i for i, text in enumerate(documents)}
    right = np.array([place[row["positive"]] for row in held])
    cosines = encode([row["query"] for row in held]) @ encode(documents).T
    own = cosines[np.arange(len(held)), right]
    # Equals count as better, so that vectors that are all alike find nothing.
    rank = (cosines >= own[:, None]).sum(1)
    return float(np.where(rank <= 10, 1 / np.log2(rank + 1.0), 0).mean())


def score_order(encode: Encode, seen: Sequence[Row], held: Sequence[Row]) -> float:
    """Spearman's correlation of cosines and scores; 0 where there is nothing to order."""
    left, right = (encode([row[name] for row in held]) for name in ("text1", "text2"))
    gold = [row["score"] for row in held]
    if len({*gold}) < 2:
        return 0.0
    return float(np.asarray(spearmanr((left * right).sum(1), gold))[0])


def pair_group(row: Row) -> str:
    """What a pair is about: its group, else its positive."""
    return row["group"] or row["positive"]


def check_classes(rows: Sequence[Row]) -> None:
    """Raise ValueError unless there are two classes."""
    if len({row["label"] for row in rows}) < 2:
        raise ValueError(f"all labels are {rows[0]['label']!r}: two classes are needed")


def check_pairs(rows: Sequence[Row]) -> None:
    """Raise ValueError unless there are two groups."""
    if len({pair_group(row) for row in rows}) < 2:
        raise ValueError("all pairs are of one group or have one positive: nothing to tell apart")


def check_scores(rows: Sequence[Row]) -> None:
    """Raise ValueError unless there are two scores."""
    if len({row["score"] for row in rows}) < 2:
        raise ValueError(f"all scores are {rows[0]['score']}: nothing to order")


KINDS = {
    "classification": Kind(
        columns=Columns(needed={"text": as_text, "label": as_label}),
        key=lambda row: " ".join(row["text"].split()).casefold(),
        stratum=lambda row: row["label"],
        check=check_classes,
        make_work=classify,
        measure="accuracy of logistic regression",
        score=score_classes,
    ),
    "pairs": Kind(
        columns=Columns(
            needed={"query": as_text, "positive": as_text},
            optional={"negatives": as_texts, "group": as_label},
        ),
        key=pair_group,
        stratum=lambda row: "",
        check=check_pairs,
        make_work=pair,
        measure="nDCG@10",
        score=score_pairs,
    ),
    "scored": Kind(
        columns=Columns(needed={"text1": as_text, "text2": as_text, "score": as_number}),
        key=lambda row: row["text1"],
        stratum=lambda row: "",
        check=check_scores,
        make_work=order,
        measure="Spearman's correlation",
        score=score_order,
    ),
}
