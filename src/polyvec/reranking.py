"""Rerank candidate texts by how well they answer a query.

The library, the command line, the search and the server all rank with the functions of this file.
They compare a query with candidates that were encoded separately (a bi-encoder), so the outputs of
candidates can be stored. A cross-encoder encodes a query and a candidate together, which is slower
and usually more accurate.

Axes in this file: C candidates.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

from polyvec.encoder import Encoder
from polyvec.heads import Outputs, maxsim
from polyvec.tasks import PASSAGE, QUERY
from polyvec.texts import list_items

Kind = Literal["dense", "sparse", "multi_vector"]

HYBRID: dict[Kind, float] = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
"""All three kinds of score, with the weights of BGE-M3 (arXiv:2402.03216)."""

RETRIEVAL = (QUERY, PASSAGE)
"""The tasks of a query and of the passages that may answer it."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One candidate with its score."""

    index: int
    """Position of the candidate in the list that was given, counted from 0."""

    score: float
    """The weighted sum of `parts`."""

    parts: dict[Kind, float]
    """The candidate's score of each kind."""


def rerank(
    encoder: Encoder,
    query: str,
    candidates: Iterable[str],
    *,
    by: Kind | Mapping[Kind, float] = "dense",
    task: str | tuple[str | None, str | None] | None = RETRIEVAL,
) -> list[Ranked]:
    """Sort candidates by how well they answer a query, best first; ties keep their order.

    `by` is one kind of score, or several kinds with their weights. "dense" is the cosine of two
    embeddings, "multi_vector" is MaxSim (both lie between -1 and 1), and "sparse" is the product of
    the weights of shared tokens, which has no upper limit. `HYBRID` combines all three. `task` is
    one task for query and candidates, or a pair of tasks. The task "separation" finds texts that
    are similar to the query instead of texts that answer it.

    Raises ValueError if the model lacks a task or a head, or `by` names no score, and for a table
    or a mapping in place of candidates.
    """
    weights: Mapping[Kind, float] = {by: 1.0} if isinstance(by, str) else by
    if isinstance(candidates, str):
        raise ValueError("candidates is one text; put it in a list")
    candidates = list_items(candidates, "candidates")
    query_task, candidate_task = task if isinstance(task, tuple) else (task, task)
    # Each text is encoded once. The rounding of a result depends on the other texts in the batch,
    # and must not decide the order of equal texts.
    positions = {text: position for position, text in enumerate(dict.fromkeys(candidates))}
    texts, tasks = [query, *positions], [query_task, *[candidate_task] * len(positions)]
    outputs = encoder.encode_all(texts, task=tasks, outputs=[*weights])
    scores = score_candidates(outputs[:1], outputs[1:], weights)
    order = [positions[text] for text in candidates]
    return rank_candidates({kind: part[order] for kind, part in scores.items()}, weights)


def score_candidates(
    query: Outputs, candidates: Outputs, kinds: Iterable[Kind]
) -> dict[Kind, Float32[np.ndarray, " C"]]:
    """The score of every candidate against the one text of `query`, for each kind of score.

    Both must have the outputs that `kinds` names.
    """
    return {kind: SCORES[kind](query, candidates) for kind in kinds}


def rank_candidates(
    scores: Mapping[Kind, Float32[np.ndarray, " C"]], weights: Mapping[Kind, float]
) -> list[Ranked]:
    """Candidates sorted by the weighted sum of their scores, best first; ties keep their order.

    Raises ValueError if `weights` is empty.
    """
    if not weights:
        raise ValueError("by is empty; name at least one of 'dense', 'sparse' and 'multi_vector'")
    total = np.sum([weight * scores[kind] for kind, weight in weights.items()], axis=0)
    return [
        Ranked(i, float(total[i]), {kind: float(part[i]) for kind, part in scores.items()})
        for i in np.argsort(-total, kind="stable").tolist()
    ]


def _dense_scores(query: Outputs, candidates: Outputs) -> Float32[np.ndarray, " C"]:
    assert query.dense is not None and candidates.dense is not None
    return candidates.dense @ query.dense[0]


def _sparse_scores(query: Outputs, candidates: Outputs) -> Float32[np.ndarray, " C"]:
    assert query.sparse is not None and candidates.sparse is not None
    return candidates.sparse.dot(query.sparse)[:, 0]


def _multi_vector_scores(query: Outputs, candidates: Outputs) -> Float32[np.ndarray, " C"]:
    assert query.multi_vector is not None and candidates.multi_vector is not None
    return maxsim(query.multi_vector[0], candidates.multi_vector)


SCORES: dict[Kind, Callable[[Outputs, Outputs], Float32[np.ndarray, " C"]]] = {
    "dense": _dense_scores,
    "sparse": _sparse_scores,
    "multi_vector": _multi_vector_scores,
}
"""Cosine, product of the weights of shared tokens, and MaxSim."""
