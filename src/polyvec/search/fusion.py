"""Several rankings of the same passages made into one. It has seen neither an index nor a model.

1. Each component (dense, bm25, sparse) scores the candidates that it has an opinion of.
2. A component's opinion of a candidate is a share of its weight: all of it for a passage that says
   all that the question does.
3. A candidate's score is the sum of its shares, over the sum of the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

By = Literal["ranks", "scores"]

RANK_OFFSET = 60
"""Of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): how slowly a lower rank fades."""

Key = tuple[str, int]
"""A passage: its file and its first character."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one component said of a passage."""

    rank: int
    """Its place among the component's candidates, from 1; equal scores have the better place."""

    score: float
    """In the component's own measure: a cosine, a BM25 score, a product of sparse weights."""

    share: float
    """What this adds to the passage's score."""


def fuse(
    scores: Mapping[str, Mapping[Key, float]],
    weights: Mapping[str, float],
    by: By,
    wholes: Mapping[str, float],
) -> dict[Key, dict[str, Part]]:
    """Every candidate with its parts, best first; ties are in the order of keys.

    By "ranks", a component gives its candidate of rank r the share 61 / (60 + r) of its weight:
    reciprocal rank fusion, which needs no scale. By "scores", it gives the score's share of its
    `wholes`, 1 at most. A component without candidates does not count.

    >>> dense, bm25 = {("a", 0): 0.9, ("b", 0): 0.5}, {("b", 0): 7.0}
    >>> scores, weights = {"dense": dense, "bm25": bm25}, {"dense": 1.0, "bm25": 1.0}
    >>> found = fuse(scores, weights, "ranks", {})
    >>> [(path, round(total(parts), 3)) for (path, _), parts in found.items()]
    [('b', 0.992), ('a', 0.5)]
    >>> found = fuse(scores, weights, "scores", {"dense": 1.0, "bm25": 28.0})
    >>> [(path, total(parts)) for (path, _), parts in found.items()]
    [('a', 0.45), ('b', 0.375)]
    """
    heard = {name: found for name, found in scores.items() if found and weights.get(name)}
    whole = sum(weights[name] for name in heard)
    parts: dict[Key, dict[str, Part]] = {}
    for name, found in heard.items():
        for key, rank in _ranks(found).items():
            if by == "ranks":
                part = (RANK_OFFSET + 1) / (RANK_OFFSET + rank)
            else:
                part = min(found[key] / wholes[name], 1.0)
            share = part * weights[name] / whole
            parts.setdefault(key, {})[name] = Part(rank, found[key], share)
    return dict(sorted(parts.items(), key=lambda item: (-total(item[1]), item[0])))


def total(parts: Mapping[str, Part]) -> float:
    """A passage's score."""
    return sum(part.share for part in parts.values())


def _ranks(found: Mapping[Key, float]) -> dict[Key, int]:
    ranks: dict[Key, int] = {}
    last, rank = None, 0
    for place, (key, score) in enumerate(sorted(found.items(), key=lambda item: -item[1]), 1):
        if score != last:
            last, rank = score, place
        ranks[key] = rank
    return ranks
