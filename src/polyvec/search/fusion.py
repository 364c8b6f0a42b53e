"""Fuse several rankings of the same passages into one. This file knows neither indexes nor models.

1. Each component (dense, bm25, sparse) scores some of the candidates.
2. A component gives a candidate a share of its weight. The share is complete for a passage that
   matches the question completely.
3. A candidate's score is the sum of its shares, divided by the sum of the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FusionMethod = Literal["ranks", "scores"]

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
