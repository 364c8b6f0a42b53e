"""Fuse several rankings of the same passages into one. This file knows neither indexes nor models.

1. Each component (dense, maxsim, bm25, sparse) scores some of the candidates.
2. A component gives a candidate a share of its weight. The share is complete for a passage that
   matches the question completely.
3. A candidate's score is the sum of its shares, divided by the sum of the weights.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

FusionMethod = Literal["ranks", "scores"]

WEIGHTS = {"dense": 1.0, "maxsim": 1.0, "bm25": 0.15, "sparse": 0.0}
"""The default weight of each component, chosen with benchmarks/questions.py. A higher weight of
bm25 finds more if all files have one language, and less across languages."""

CODE_WEIGHT = 0.5
"""The weight of bm25 for a question with a name or a code that occurs in a passage."""

HEADS = {"maxsim": "multi-vector", "sparse": "sparse"}
"""The head that a component needs."""

RANK_OFFSET = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009). The larger it is, the
less a rank matters."""

PassageKey = tuple[str, int]
"""A passage: its file and the position of its first character."""


@dataclass(frozen=True, slots=True)
class Part:
    """The contribution of one component to a passage's score."""

    rank: int
    """The passage's rank among the component's candidates, from 1. Equal scores have one rank."""

    score: float
    """The component's own score: a cosine, a BM25 score, or a product of sparse weights."""

    share: float
    """The amount that is added to the passage's score."""


def choose_weights(weights: Mapping[str, float], heads: Collection[str]) -> dict[str, float]:
    """The weights of the components that count: `weights`, and else the default weights.

    `heads` names the heads of the model, "sparse" or "multi-vector". The default weight of maxsim
    is that of dense, since both compare meaning.

    Raises ValueError for an unknown component, for one whose head the model lacks, for a weight
    that is not a number from 0 on, and if every weight is 0.
    """
    defaults = {name: WEIGHTS[name] for name in WEIGHTS if HEADS.get(name, "") in ("", *heads)}
    if "maxsim" in defaults:
        defaults["maxsim"] *= weights.get("dense", WEIGHTS["dense"])
    for name, weight in weights.items():
        if name not in WEIGHTS:
            raise ValueError(f"there is no component {name!r}, only {', '.join(WEIGHTS)}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of {name} is {weight}, must be 0 or more")
        if name not in defaults and weight:
            raise ValueError(
                f"this model has no {HEADS[name]} head: leave out the weight of {name}"
            )
    chosen = {name: weight for name, weight in (defaults | dict(weights)).items() if weight}
    if not chosen:
        raise ValueError("every weight is 0; at least one component must have a weight")
    return chosen


def fuse(
    scores: Mapping[str, Mapping[PassageKey, float]],
    weights: Mapping[str, float],
    method: FusionMethod,
    max_scores: Mapping[str, float],
) -> dict[PassageKey, dict[str, Part]]:
    """The parts of every candidate's score, the best candidate first; ties are sorted by key.

    With "ranks", a component gives the candidate of rank r the share 61 / (60 + r) of its weight:
    reciprocal rank fusion, which needs no scale. With "scores", the share is the component's score
    divided by its entry in `max_scores`, but at most 1. A component without candidates is ignored.

    >>> dense, bm25 = {("a", 0): 0.9, ("b", 0): 0.5}, {("b", 0): 7.0}
    >>> scores, weights = {"dense": dense, "bm25": bm25}, {"dense": 1.0, "bm25": 1.0}
    >>> fused = fuse(scores, weights, "ranks", {})
    >>> [(path, round(total(parts), 3)) for (path, _), parts in fused.items()]
    [('b', 0.992), ('a', 0.5)]
    >>> fused = fuse(scores, weights, "scores", {"dense": 1.0, "bm25": 28.0})
    >>> [(path, total(parts)) for (path, _), parts in fused.items()]
    [('a', 0.45), ('b', 0.375)]
    """
    used = {name: scored for name, scored in scores.items() if scored and weights.get(name)}
    total_weight = sum(weights[name] for name in used)
    parts: dict[PassageKey, dict[str, Part]] = {}
    for name, scored in used.items():
        for key, rank in _rank(scored).items():
            if method == "ranks":
                match = (RANK_OFFSET + 1) / (RANK_OFFSET + rank)
            else:
                match = min(scored[key] / max_scores[name], 1.0)
            share = match * weights[name] / total_weight
            parts.setdefault(key, {})[name] = Part(rank, scored[key], share)
    return dict(sorted(parts.items(), key=lambda item: (-total(item[1]), item[0])))


def total(parts: Mapping[str, Part]) -> float:
    """The score of a passage: the sum of its shares."""
    return sum(part.share for part in parts.values())


def _rank(scored: Mapping[PassageKey, float]) -> dict[PassageKey, int]:
    ranks: dict[PassageKey, int] = {}
    last, rank = None, 0
    descending = sorted(scored.items(), key=lambda item: -item[1])
    for position, (key, score) in enumerate(descending, 1):
        if score != last:
            last, rank = score, position
        ranks[key] = rank
    return ranks
