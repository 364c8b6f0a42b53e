"""The row formats that a user's own task can be trained on.

    classification   text, label                              texts of a class should be similar
    pairs            query, positive[, negatives][, group]    a query should find its positive
    retrieval        as pairs; queries and passages have tasks of their own
    scored           text1, text2, score                      cosines should follow the scores

A row format defines its columns, the training objective, and how a model is scored on held-out
rows (`polyvec.train.measures`). `negatives` is a list of texts (in CSV, a single text) that
resemble the positive and are wrong. Pairs of one `group` mean the same thing. Pairs may have a
teacher's `scores` of the positive and of each negative, in this order.

A *side* is the number of a task among those that are trained together: retrieval has the sides 0
for queries and 1 for passages, and the other formats have one side.

Axes in this file: N texts, C classes, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from polyvec.network import Network
from polyvec.records import (
    Columns,
    Record,
    as_label,
    as_number,
    as_string,
    as_text,
    plain_value,
)
from polyvec.train.data.batches import Plan
from polyvec.train.data.tokens import TokenIds
from polyvec.train.distributed import Model, unwrap
from polyvec.train.loop import StepFn
from polyvec.train.losses import Loss, margin_mse, matryoshka, score_divergence
from polyvec.train.measures import (
    MEASURES_OF_CLASSES,
    MEASURES_OF_ORDER,
    MEASURES_OF_PAIRS,
    Measure,
    Predict,
    pair_group,
    predict_classes,
    predict_order,
    predict_pairs,
)
from polyvec.train.objectives import backward, contrast, embed, ordering, score_distillation

MAX_TEXTS_PER_CLASS = 32
"""Texts of a class whose mean is the first value of the class's vector."""

CONTRAST = "contrast"

LOSSES: Mapping[str, Loss | None] = {
    CONTRAST: None,
    "kl": score_divergence,
    "margin-mse": margin_mse,
}
"""The losses of pairs. All but the first learn from a teacher's scores."""

Tokenise = Callable[[list[str], int], TokenIds]
"""Token ids of texts, each behind the instruction of a side."""

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

    make_objective: Callable[[Model, Tokenise, Sequence[Record], Plan, str], Objective]
    """Makes the training objective of the tasks of all sides; the last argument names the loss."""

    predict: Predict
    """What embeddings predict for held-out rows."""

    measures: Mapping[str, Measure]
    """Scores of predictions by their names. The first one chooses the best checkpoint."""

    sides: tuple[str, ...] = ("",)
    """The ends of the names of the tasks that are trained together."""


def find_flaw(row: Record, row_format: RowFormat, loss: str) -> str:
    """Why a row that is not damaged teaches nothing; an empty text if it does."""
    for name in row_format.columns.needed:
        if row[name] is None:
            return f"{row_format.columns.aliases.get(name, name)} is missing or blank"
    if loss != CONTRAST:
        scores, negatives = row["scores"] or [], row["negatives"] or []
        if not negatives or len(scores) != 1 + len(negatives):
            return (
                f"scores has {len(scores)} numbers, but the loss {loss} needs one for the positive "
                f"and one for each of the {len(negatives)} negatives"
            )
    return ""


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
    network: Model, tokenise: Tokenise, rows: Sequence[Record], plan: Plan, loss: str
) -> Objective:
    """Train texts towards the vector of their class, which is learnt too and then discarded.

    With few classes this is better than the paper's tuples, because every text is compared with
    every class in every step.
    """
    texts = tokenise([row["text"] for row in rows], 0)
    labels = np.unique([row["label"] for row in rows], return_inverse=True)[1]
    classes = nn.Parameter(class_vectors(unwrap(network), texts, labels))
    nested = matryoshka(class_loss, unwrap(network).config.dims)

    def step_fn(step: int) -> tuple[Tensor, int]:
        chosen = plan[step]
        batch = [texts[i] for i in chosen]
        gold = torch.from_numpy(labels[chosen]).to(classes.device)

        def of_all(vectors: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            return nested(vectors, classes, labels=gold)

        value = backward(network, batch, [0] * len(batch), of_all)
        return value, sum(len(text) for text in batch)

    return step_fn, {"classes": classes}


def pair_objective(
    network: Model,
    tokenise: Tokenise,
    rows: Sequence[Record],
    plan: Plan,
    loss: str,
    *,
    passage_side: int,
) -> Objective:
    """Train each query to find its positive among those of the step, or as a teacher does."""
    queries = tokenise([row["query"] for row in rows], 0)
    positives = tokenise([row["positive"] for row in rows], passage_side)
    hard = [row["negatives"] or [] for row in rows]
    flat = iter(tokenise([text for texts in hard for text in texts], passage_side))
    negatives = [[next(flat) for _ in texts] for texts in hard]
    adapter_ids = (0, passage_side)
    teach = LOSSES[loss]
    if teach is not None:
        documents = [[own, *others] for own, others in zip(positives, negatives, strict=True)]
        scores = [np.array(row["scores"], np.float32) for row in rows]
        step_fn = score_distillation(
            network, queries, documents, scores, plan, loss=teach, adapter_ids=adapter_ids
        )
        return step_fn, {}
    groups = np.unique([pair_group(row) for row in rows], return_inverse=True)[1]
    step_fn = contrast(
        network,
        queries,
        positives,
        groups,
        plan,
        adapter_ids=adapter_ids,
        negatives=negatives,
    )
    return step_fn, {}


def score_objective(
    network: Model, tokenise: Tokenise, rows: Sequence[Record], plan: Plan, loss: str
) -> Objective:
    """Train pairs with higher scores to have higher cosines (`ordering`)."""
    left, right = (tokenise([row[name] for row in rows], 0) for name in ("text1", "text2"))
    scores = np.array([row["score"] for row in rows], np.float32)
    return ordering(network, left, right, scores, plan, adapter_id=0), {}


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


def as_class(value: Any) -> str:
    """A class. A number that is not whole is no class."""
    if isinstance(value, float) and np.isfinite(value) and value != int(value):
        raise ValueError(
            f"is {value}, must be a text or a whole number; numbers that have an order belong to "
            "--kind scored"
        )
    return as_label(value)


def as_given_texts(value: Any) -> list[str]:
    """The texts of a list that are not blank; a text alone is a list of one."""
    texts = value if isinstance(value, list | tuple) else [value]
    cells = [plain_value(text) for text in texts]
    return [as_text(cell) for cell in cells if cell is not None and as_string(cell).strip()]


def as_numbers(value: Any) -> list[float]:
    """A list of finite numbers."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"is {value!r}, must be a list of numbers")
    return [as_number(plain_value(number)) for number in value]


def or_missing(convert: Callable[[Any], Any], value: Any) -> Any:
    """A cell, or None if it is missing or blank. Such a row is no error in data for training."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return convert(value)


def _needed(**columns: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    return {name: partial(or_missing, convert) for name, convert in columns.items()}


def _pairs(sides: tuple[str, ...]) -> RowFormat:
    passage_side = len(sides) - 1
    return RowFormat(
        columns=Columns(
            needed=_needed(query=as_text, positive=as_text),
            optional={"negatives": as_given_texts, "group": as_label, "scores": as_numbers},
        ),
        roles={"query": "query", "text": "positive"},
        key=pair_group,
        stratum=lambda row: "",
        check=check_pairs,
        make_objective=partial(pair_objective, passage_side=passage_side),
        predict=partial(predict_pairs, passage_side=passage_side),
        measures=MEASURES_OF_PAIRS,
        sides=sides,
    )


ROW_FORMATS = {
    "classification": RowFormat(
        columns=Columns(needed=_needed(text=as_text, label=as_class)),
        roles={"text": "text", "label": "label"},
        key=lambda row: " ".join(row["text"].split()).casefold(),
        stratum=lambda row: row["label"],
        check=check_classes,
        make_objective=class_objective,
        predict=predict_classes,
        measures=MEASURES_OF_CLASSES,
    ),
    "pairs": _pairs(("",)),
    "retrieval": _pairs((".query", ".passage")),
    "scored": RowFormat(
        columns=Columns(needed=_needed(text1=as_text, text2=as_text, score=as_number)),
        roles={"label": "score"},
        key=lambda row: row["text1"],
        stratum=lambda row: "",
        check=check_scores,
        make_objective=score_objective,
        predict=predict_order,
        measures=MEASURES_OF_ORDER,
    ),
}
