"""Answers: texts that are right for a query, and so never its negatives, whichever row has them.

A text answers a query if it is the positive of a row of the query's group, or of a row with the
same query. A hard negative that was mined for one row may be such a text for another row, or even
for its own.

Axes in this file: N queries, M documents.
"""

from collections.abc import Mapping
from itertools import repeat

import numpy as np
from jaxtyping import Bool, Int

from polyvec.train.data.tokens import Spans, TokenIds

Answers = Mapping[int, set[int]]
"""The groups that a text answers, by the hash of its tokens."""


def find_answers(
    queries: TokenIds,
    documents: TokenIds,
    groups: Int[np.ndarray, " N"],
    spans: Spans | None = None,
) -> Answers:
    """The groups that each positive answers. With `spans`, a positive is that part of a document.

    >>> texts = [np.int32([0, 7, 2]), np.int32([0, 8, 2])]
    >>> answers = find_answers([texts[0]] * 2, texts, np.array([3, 4]))
    >>> mark_answers(np.array([3, 9]), texts, answers).tolist()
    [[True, True], [False, False]]
    """
    same_query: dict[int, set[int]] = {}
    for query, group in zip(queries, groups.tolist(), strict=True):
        same_query.setdefault(_hash(query), set()).add(group)
    answers: dict[int, set[int]] = {}
    parts = repeat((0, None)) if spans is None else spans
    for query, document, (start, end) in zip(queries, documents, parts, strict=False):
        answers.setdefault(_hash(document[start:end]), set()).update(same_query[_hash(query)])
    return answers


def mark_answers(
    groups: Int[np.ndarray, " N"], documents: TokenIds, answers: Answers
) -> Bool[np.ndarray, "N M"]:
    """Whether each document answers each query, whose group is given."""
    marks = np.zeros((len(groups), len(documents)), bool)
    for place, document in enumerate(documents):
        if answered := answers.get(_hash(document)):
            marks[:, place] = np.isin(groups, [*answered])
    return marks


def _hash(text: Int[np.ndarray, " _T"]) -> int:
    # 64 bits: among a billion texts, two different ones share a hash with a probability of 3 %.
    return hash(text.tobytes())
