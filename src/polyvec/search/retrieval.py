"""Retrieve candidates from an index's table with each component, and rerank them.

Axes in this file: N candidates, dim the vectors' size.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from lancedb.query import MatchQuery
from lancedb.table import Table

from polyvec.encoder import Encoder
from polyvec.heads import Outputs, Sparse
from polyvec.reranking import RETRIEVAL, rank_candidates, score_candidates
from polyvec.search.fusion import Part, PassageKey
from polyvec.search.lexical import index_words, weigh_words
from polyvec.search.vectors import Quantise, Row, find_cosines, find_nearest, run_query
from polyvec.tokenizer import Tokenizer

QUERY, PASSAGE = RETRIEVAL

MIN_CANDIDATES = 100
"""The number of passages that each component retrieves, at least."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a search found."""

    path: str
    """The file of the passage, relative to the folder."""

    line: int | None
    """The line of the file, counted from 1, on which the passage begins; None in a PDF."""

    page: int | None
    """The page of a PDF, counted from 1; None in other files."""

    start: int
    end: int
    """The passage's characters [start, end) in the file's text."""

    text: str
    score: float
    """The sum of the shares of its parts, at most 1. After reranking it is the MaxSim score, and
    for similar files the cosine."""

    parts: dict[str, Part]
    """The contribution of each component that scored the passage."""


class Candidates(NamedTuple):
    """The passages that the components retrieved, and their scores."""

    rows: dict[PassageKey, Row]
    scores: dict[str, dict[PassageKey, float]]
    """The scores that each component gave to passages."""

    max_scores: dict[str, float]
    """The score that each component gives to a passage that matches the question completely."""


def question_outputs(components: Collection[str], *, rerank: bool) -> list[str]:
    """The outputs of the question that a search needs from the encoder."""
    needed = {"dense": True, "sparse": "sparse" in components, "multi_vector": rerank}
    return [name for name, is_needed in needed.items() if is_needed]


def find_candidates(
    table: Table,
    tokenizer: Tokenizer,
    question: str,
    encoded: Outputs,
    *,
    quantise: Quantise,
    components: Collection[str],
    depth: int,
    where: str,
) -> Candidates:
    """The passages that the components retrieve, and the score that each component gives them.

    `encoded` holds the outputs of the question that `question_outputs` names. The components dense
    and bm25 retrieve `depth` passages each. The components dense and sparse score the passages of
    both, even if only one of the two has a weight.
    """
    assert encoded.dense is not None
    vector = encoded.dense[0]
    nearest: list[Row] = []
    matching, cosines = [], []
    if "dense" in components or "sparse" in components:
        nearest = find_nearest(table, vector, quantise=quantise, depth=depth, where=where)
    if "bm25" in components or "sparse" in components:
        matching, cosines = find_matching(table, question, vector, depth=depth, where=where)
    rows = {_key(row): row for row in [*matching, *nearest]}
    scores = {
        "bm25": {_key(row): row["score"] for row in matching},
        "dense": {
            **{_key(row): cosine for row, cosine in zip(matching, cosines, strict=True)},
            **{_key(row): row["score"] for row in nearest},
        },
    }
    max_scores = {"dense": 1.0}
    if "bm25" in components and matching:
        best = max(matching, key=lambda row: row["score"])
        share = shared_weight(question, best["text"], tokenizer)
        max_scores["bm25"] = best["score"] / max(share, 1e-9)
    if "sparse" in components:
        assert encoded.sparse is not None
        scores["sparse"] = _sparse_scores(encoded.sparse, rows)
        max_scores["sparse"] = float(encoded.sparse.dot(encoded.sparse)[0, 0])
    return Candidates(rows, {name: scores[name] for name in components}, max_scores)


def find_matching(
    table: Table,
    question: str,
    vector: Float32[np.ndarray, " dim"],
    *,
    depth: int,
    where: str,
) -> tuple[list[Row], list[float]]:
    """The `depth` rows with the highest BM25 scores, and the cosine of each with `vector`.

    Every row shares at least one word with the question.
    """
    # A plain string would be parsed as a query with its own syntax. Pyright misses the defaults.
    query = table.search(MatchQuery(question, "text"), query_type="fts")  # pyright: ignore
    rows = run_query(table, query, "_score", depth, where, ["vector"])
    cosines = find_cosines(rows["vector"].combine_chunks(), vector)
    return rows.drop_columns(["vector"]).to_pylist(), cosines.tolist()


def _key(row: Row) -> PassageKey:
    return row["path"], row["start"]


def shared_weight(question: str, text: str, tokenizer: Tokenizer) -> float:
    """The share of the weight of the question's words that also occur in the text, from 0 to 1.

    A question in another language shares only short, frequent words with a text, such as "no" or
    "in", so its share is low.
    """
    weights = weigh_words(index_words(question), tokenizer)
    shared = sum(weights[word] for word in index_words(text) if word in weights)
    return shared / max(sum(weights.values()), 1e-9)


def _sparse_scores(question: Sparse, rows: Mapping[PassageKey, Row]) -> dict[PassageKey, float]:
    """The products of the question's sparse weights and the rows', where they share a token."""
    ids = [np.array(row["tokens"], np.int32) for row in rows.values()]
    weights = [np.array(row["weights"], np.float32) for row in rows.values()]
    passages = Sparse(
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
        np.concatenate([np.empty(0, np.int32), *ids]),
        np.concatenate([np.empty(0, np.float32), *weights]),
        question.vocab_size,
    )
    products = question.dot(passages)[0].tolist()
    return {key: product for key, product in zip(rows, products, strict=True) if product > 0}


def rerank_hits(
    encoder: Encoder, question: Outputs, hits: Sequence[Hit], texts: Sequence[str]
) -> list[Hit]:
    """The hits sorted by MaxSim of the question's tokens and those of their texts with headings.

    `question` has the output `multi_vector`. The parts of other components stay with a hit, but
    their share becomes 0, since the fused score no longer counts.
    """
    passages = encoder.encode_all(texts, task=PASSAGE, outputs=["multi_vector"], progress=False)
    scores = score_candidates(question, passages, ["multi_vector"])
    reranked = []
    for rank, ranked in enumerate(rank_candidates(scores, {"multi_vector": 1.0}), 1):
        hit = hits[ranked.index]
        parts = {name: replace(part, share=0.0) for name, part in hit.parts.items()}
        parts["maxsim"] = Part(rank, ranked.score, ranked.score)
        reranked.append(replace(hit, score=ranked.score, parts=parts))
    return reranked


def make_hit(row: Row, score: float, parts: dict[str, Part]) -> Hit:
    """The hit for a row of the table. Its text has no headings from above the passage."""
    position = {name: row[name] for name in ("path", "line", "page", "start", "end")}
    return Hit(text=row["text"][row["titles"] :], score=score, parts=parts, **position)


def where_sql(path: str | None, since: datetime | None) -> str:
    r"""The SQL condition on a file's path and date; "" if there is none.

    In `path`, `*` stands for any characters and `?` for one.

    >>> where_sql("*.md", None)
    "regexp_like(path, '^(?s:.*\\.md)$')"
    """
    conditions = []
    if path is not None:
        wildcards = {"*": ".*", "?": "."}
        pattern = "".join(wildcards.get(sign, re.escape(sign)) for sign in path)
        conditions.append(f"regexp_like(path, {quote(f'^(?s:{pattern})$')})")
    if since is not None:
        conditions.append(f"modified >= {int(since.timestamp())}")
    return " AND ".join(conditions)


def quote(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
