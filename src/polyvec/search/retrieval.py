"""What is asked of an index's table: each component's candidates, and their order.

Axes in this file: N candidates, dim the vectors' size.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from lancedb.query import MatchQuery
from lancedb.table import Table

from polyvec.encoder import Encoder
from polyvec.heads import Sparse, maxsim
from polyvec.search.fusion import Key, Part
from polyvec.search.lexical import index_words, weigh_words
from polyvec.search.vectors import Quantise, Row, collect, find_cosines, find_nearest
from polyvec.tokenizer import Tokenizer

QUERY, PASSAGE = "retrieval.query", "retrieval.passage"

CANDIDATES = 100
"""How many passages each component names, at least."""

WEIGHTS = {"dense": 1.0, "bm25": 0.25, "sparse": 0.0}
"""How much each component counts, where nothing is said of it: benchmarks/hybrid.py has measured
it. More for words finds more where all files have one language, and less across languages."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found."""

    path: str
    """Its file, below the folder."""

    line: int | None
    """The file's line, counted from 1, on which the passage begins; None in a PDF."""

    page: int | None
    """The page of a PDF, counted from 1."""

    start: int
    end: int
    """Its characters [start, end) in the file's text."""

    text: str
    score: float
    """The sum of its parts' shares, 1 at most. After MaxSim, and beside a file, a cosine."""

    parts: dict[str, Part]
    """What each component said of it; one that says nothing is missing."""


class Candidates(NamedTuple):
    """What was found, and what each component says of it."""

    rows: dict[Key, Row]
    scores: dict[str, dict[Key, float]]
    wholes: dict[str, float]
    """Each component's score of a passage that says all that the question does."""


def find_candidates(
    table: Table,
    encoder: Encoder,
    question: str,
    *,
    vector: Float32[np.ndarray, " dim"],
    quantise: Quantise,
    names: Sequence[str],
    depth: int,
    where: str,
) -> Candidates:
    """Passages, and what each of the components says of those that it has found.

    `dense` and `bm25` look for `depth` passages each. `dense` and `sparse` have an opinion of all
    of these, whether or not the other finder is asked for its own.
    """
    nearest: list[Row] = []
    matching, cosines = [], []
    if "dense" in names or "sparse" in names:
        nearest = find_nearest(table, vector, quantise=quantise, depth=depth, where=where)
    if "bm25" in names or "sparse" in names:
        matching, cosines = find_matching(table, question, vector, depth=depth, where=where)
    rows = {_key(row): row for row in [*matching, *nearest]}
    scores = {
        "bm25": {_key(row): row["score"] for row in matching},
        "dense": {
            **{_key(row): cosine for row, cosine in zip(matching, cosines, strict=True)},
            **{_key(row): row["score"] for row in nearest},
        },
    }
    wholes = {"dense": 1.0}
    if "bm25" in names and matching:
        best = max(matching, key=lambda row: row["score"])
        share = share_words(question, best["text"], encoder.tokenizer)
        wholes["bm25"] = best["score"] / max(share, 1e-9)
    if "sparse" in names:
        scores["sparse"], wholes["sparse"] = _weigh(encoder, question, rows)
    return Candidates(rows, {name: scores[name] for name in names}, wholes)


def find_matching(
    table: Table,
    question: str,
    vector: Float32[np.ndarray, " dim"],
    *,
    depth: int,
    where: str,
) -> tuple[list[Row], list[float]]:
    """The `depth` rows that match the question's words best by BM25; all share one at least.

    And the cosine of each with the question's vector.
    """
    # A plain string would do, were its syntax told. Pyright does not see the defaults.
    query = table.search(MatchQuery(question, "text"), query_type="fts")  # pyright: ignore
    found = collect(table, query, "_score", depth, where, ["vector"])
    cosines = find_cosines(found["vector"].combine_chunks(), vector)
    return found.drop_columns(["vector"]).to_pylist(), cosines.tolist()


def _key(row: Row) -> Key:
    return row["path"], row["start"]


def share_words(question: str, text: str, tokenizer: Tokenizer) -> float:
    """How much of what the question's words say, the text has words for: 0 to 1.

    A question in another language has only small words in common with a text, if any: "no", "in".
    """
    weights = weigh_words(index_words(question), tokenizer)
    shared = sum(weights[word] for word in index_words(text) if word in weights)
    return shared / max(sum(weights.values()), 1e-9)


def _weigh(
    encoder: Encoder, question: str, rows: Mapping[Key, Row]
) -> tuple[dict[Key, float], float]:
    """Products of the question's sparse weights and the rows', where they share a word.

    And the product of the question's with themselves.
    """
    asked = encoder.encode_sparse([question], task=QUERY, progress=False)
    ids = [np.array(row["tokens"], np.int32) for row in rows.values()]
    weights = [np.array(row["weights"], np.float32) for row in rows.values()]
    theirs = Sparse(
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
        np.concatenate([np.empty(0, np.int32), *ids]),
        np.concatenate([np.empty(0, np.float32), *weights]),
        asked.vocab_size,
    )
    products = asked.dot(theirs)[0].tolist()
    shared = {key: product for key, product in zip(rows, products, strict=True) if product > 0}
    return shared, float(asked.dot(asked)[0, 0])


def rerank(encoder: Encoder, question: str, hits: Sequence[Hit], titled: list[str]) -> list[Hit]:
    """The hits by MaxSim of the question's tokens and those of their text with its headings.

    What other components said stays among a hit's parts, with a share of 0.
    """
    asked = encoder.encode_multi_vector([question], task=QUERY, progress=False)[0]
    scores = maxsim(
        asked, encoder.encode_multi_vector(titled, task=PASSAGE, progress=False)
    ).tolist()
    order = sorted(range(len(hits)), key=lambda place: -scores[place])
    found = []
    for rank, place in enumerate(order, 1):
        part = Part(rank, scores[place], scores[place])
        # The fused score no longer counts, and so nor do the shares of it.
        said = {name: replace(old, share=0.0) for name, old in hits[place].parts.items()}
        parts = said | {"maxsim": part}
        found.append(replace(hits[place], score=scores[place], parts=parts))
    return found


def choose_weights(weights: Mapping[str, float], sparse: bool) -> dict[str, float]:
    """The weights of the components that count; `sparse` tells whether the model has that head.

    Raises ValueError for a component that is none or cannot be, and where none is left.
    """
    known = {name: weight for name, weight in WEIGHTS.items() if name != "sparse" or sparse}
    for name, weight in weights.items():
        if name not in WEIGHTS:
            raise ValueError(f"there is no component {name!r}, only {', '.join(WEIGHTS)}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of {name} is {weight}, must be 0 or more")
        if name not in known and weight:
            raise ValueError("this model has no sparse head: leave out the weight of sparse")
    chosen = {name: weight for name, weight in (known | dict(weights)).items() if weight}
    if not chosen:
        raise ValueError("every weight is 0; at least one component must count")
    return chosen


def make_hit(row: Row, score: float, parts: dict[str, Part]) -> Hit:
    """A row as its finder shows it."""
    place = {name: row[name] for name in ("path", "line", "page", "start", "end")}
    return Hit(text=row["text"][row["titles"] :], score=score, parts=parts, **place)


def where_sql(path: str | None, since: datetime | None) -> str:
    r"""The condition in SQL on a file's path and date; "" for none.

    >>> where_sql("*.md", None)
    "regexp_like(path, '^(?s:.*\\.md)$')"
    """
    conditions = []
    if path is not None:
        wild = {"*": ".*", "?": "."}
        pattern = "".join(wild.get(sign, re.escape(sign)) for sign in path)
        conditions.append(f"regexp_like(path, {quote(f'^(?s:{pattern})$')})")
    if since is not None:
        conditions.append(f"modified >= {int(since.timestamp())}")
    return " AND ".join(conditions)


def quote(text: str) -> str:
    """A string as SQL spells it."""
    return "'" + text.replace("'", "''") + "'"
