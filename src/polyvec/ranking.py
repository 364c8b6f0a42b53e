"""Candidates in the order in which they answer a query.

This is reranking by a bi-encoder: query and candidates are read apart, so that each candidate's
signals could be stored. Cross-encoders read them together, which is slower and usually better.

Axes in this file: C candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

from polyvec.encoder import Encoder
from polyvec.heads import Outputs, maxsim

Kind = Literal["dense", "sparse", "multi"]

HYBRID: dict[Kind, float] = {"dense": 1.0, "sparse": 0.3, "multi": 1.0}
"""All three scores, with BGE-M3's weights."""

RETRIEVAL = ("retrieval.query", "retrieval.passage")
"""The adapters of a question and of what may answer it."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate and why it stands where it does."""

    index: int
    """Its place among the candidates given."""

    score: float
    """The weighted sum of `parts`."""

    parts: dict[Kind, float]
    """Its score of each kind."""


def rerank(
    encoder: Encoder,
    query: str,
    candidates: Sequence[str],
    *,
    by: Kind | Mapping[Kind, float] = "dense",
    task: str | tuple[str | None, str | None] | None = RETRIEVAL,
) -> list[Ranked]:
    """The candidates, best first; equal ones in the order given.

    `by` is one kind of score, or several with their weights: "dense" is the cosine, "multi" MaxSim
    (from -1 to 1 too), "sparse" the product of the weights of shared tokens, which has no upper
    limit; `HYBRID` has all three. `task` reads query and candidates, or is a pair of tasks, one for
    each; "separation" finds what is alike, not what answers.

    Raises ValueError if the model lacks a task or a head, or `by` names no score.
    """
    weights: Mapping[Kind, float] = {by: 1.0} if isinstance(by, str) else by
    if not weights:
        raise ValueError("by is empty; name at least one of 'dense', 'sparse' and 'multi'")
    if isinstance(candidates, str):
        raise ValueError("candidates is one text; put it in a list")
    asks, answers = task if isinstance(task, tuple) else (task, task)
    # Each text once: what its neighbours in a batch do to its last bits is no reason to prefer it.
    places = {text: place for place, text in enumerate(dict.fromkeys(candidates))}
    texts, tasks = [query, *places], [asks, *[answers] * len(places)]
    found = encoder.encode_all(texts, task=tasks, outputs=[*weights])
    order = [places[text] for text in candidates]
    scores: dict[Kind, Float32[np.ndarray, " C"]] = {k: _score(found, k)[order] for k in weights}
    total = sum(weights[kind] * part for kind, part in scores.items())
    assert isinstance(total, np.ndarray)
    return [
        Ranked(i, float(total[i]), {kind: float(part[i]) for kind, part in scores.items()})
        for i in np.argsort(-total, kind="stable").tolist()
    ]


def _score(found: Outputs, kind: Kind) -> Float32[np.ndarray, " C"]:
    """Every text after the first against the first."""
    if kind == "dense":
        assert found.dense is not None
        return found.dense[1:] @ found.dense[0]
    if kind == "sparse":
        assert found.sparse is not None
        return found.sparse.dot(found.sparse[:1])[1:, 0]
    assert found.multi is not None
    return maxsim(found.multi[0], found.multi[1:])
