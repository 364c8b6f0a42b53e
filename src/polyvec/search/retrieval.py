"""Retrieve candidates from an index's table with each component, and rerank them.

Axes in this file: N candidates, dim the vectors' size.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from lancedb.query import MatchQuery
from lancedb.table import Table

from polyvec.config import ModelConfig
from polyvec.encoder import Encoder
from polyvec.heads import Outputs, Sparse, maxsim
from polyvec.reranking import RETRIEVAL, rank_candidates, score_candidates
from polyvec.search.fusion import Part, PassageKey
from polyvec.search.lexical import index_words, normalise, weigh_words
from polyvec.search.vectors import (
    SIGNS_FACTOR,
    Quantise,
    Row,
    find_cosines,
    find_nearest,
    run_query,
    unpack_token_bits,
)
from polyvec.tokenizer import Tokenizer

QUERY, PASSAGE = RETRIEVAL

MIN_CANDIDATES = 100
"""The number of passages that each component retrieves, at least."""

COMPONENT_COLUMNS = {"sparse": ("tokens", "weights"), "maxsim": ("token_bits",)}
"""The columns of the table that a component scores."""


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

    copies: tuple[str, ...] = ()
    """The paths of other files that contain the same passage."""

    sentence: tuple[int, int] | None = None
    """The characters [start, end) of `text` that answer the question best, if they are known."""


class Candidates(NamedTuple):
    """The passages that the components retrieved, and their scores."""

    rows: dict[PassageKey, Row]
    scores: dict[str, dict[PassageKey, float]]
    """The scores that each component gave to passages."""

    max_scores: dict[str, float]
    """The score that each component gives to a passage that matches the question completely."""

    is_complete: bool
    """Whether there are no passages that a deeper search could add."""

    def join(self, more: "Candidates") -> "Candidates":
        """These candidates and those of a search of other files.

        They are complete if the other search found nothing.
        """
        scores = {name: more.scores[name] | scored for name, scored in self.scores.items()}
        rows = more.rows | self.rows
        return Candidates(rows, scores, more.max_scores | self.max_scores, not more.rows)


def list_heads(config: ModelConfig) -> list[str]:
    """The heads of a model that components need."""
    heads = {"sparse": config.sparse_head, "multi-vector": config.multi_vector_dim}
    return [name for name, is_there in heads.items() if is_there]


def question_outputs(components: Collection[str], *, rerank: bool) -> list[str]:
    """The outputs of the question that a search needs from the encoder."""
    needed = {
        "dense": True,
        "sparse": "sparse" in components,
        "multi_vector": rerank or "maxsim" in components,
    }
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
    and bm25 retrieve `depth` passages each, and maxsim scores what they retrieve. The component
    sparse scores the passages of both, even if only one of the two has a weight.
    """
    assert encoded.dense is not None
    vector = encoded.dense[0]
    nearest: list[Row] = []
    matching, cosines = [], []
    columns = [column for name in components for column in COMPONENT_COLUMNS.get(name, ())]
    if not {"dense", "maxsim", "sparse"}.isdisjoint(components):
        nearest = find_nearest(
            table, vector, quantise=quantise, depth=depth, where=where, internal=columns
        )
    if not {"bm25", "sparse"}.isdisjoint(components):
        matching, cosines = find_matching(
            table, question, vector, depth=depth, where=where, internal=columns
        )
    rows = {_key(row): row for row in [*matching, *nearest]}
    scores = {
        "bm25": {_key(row): row["score"] for row in matching},
        "dense": {
            **{_key(row): cosine for row, cosine in zip(matching, cosines, strict=True)},
            **{_key(row): row["score"] for row in nearest},
        },
    }
    max_scores = {"dense": 1.0, "maxsim": 1.0}
    if "bm25" in components and matching:
        best = max(matching, key=lambda row: row["score"])
        share = shared_weight(question, best["text"], tokenizer)
        max_scores["bm25"] = best["score"] / max(share, 1e-9)
    if "maxsim" in components:
        assert encoded.multi_vector is not None
        scores["maxsim"] = _maxsim_scores(encoded.multi_vector[0], rows)
    if "sparse" in components:
        assert encoded.sparse is not None
        scores["sparse"] = _sparse_scores(encoded.sparse, rows)
        max_scores["sparse"] = float(encoded.sparse.dot(encoded.sparse)[0, 0])
    is_complete = len(nearest) < depth and len(matching) < depth
    return Candidates(rows, {name: scores[name] for name in components}, max_scores, is_complete)


def find_matching(
    table: Table,
    question: str,
    vector: Float32[np.ndarray, " dim"],
    *,
    depth: int,
    where: str,
    internal: Sequence[str] = (),
) -> tuple[list[Row], list[float]]:
    """The `depth` rows with the highest BM25 scores, and the cosine of each with `vector`.

    Every row shares at least one word with the question.
    """
    # A plain string would be parsed as a query with its own syntax. Pyright misses the defaults.
    words = MatchQuery(normalise(question) or "?", "words")  # pyright: ignore
    query = table.search(words, query_type="fts")
    rows = run_query(table, query, "_score", depth, where, ["vector", *internal])
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


def _maxsim_scores(
    question: Float32[np.ndarray, "T V"], rows: Mapping[PassageKey, Row]
) -> dict[PassageKey, float]:
    """The MaxSim score of each row, estimated from the signs of its token vectors."""
    if not rows:
        return {}
    signs = unpack_token_bits([row["token_bits"] for row in rows.values()], question.shape[1])
    estimates = np.minimum(maxsim(question, signs) * SIGNS_FACTOR, 1.0)
    return dict(zip(rows, estimates.tolist(), strict=True))


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


def make_hit(row: Row, score: float, parts: dict[str, Part], copies: Sequence[str] = ()) -> Hit:
    """The hit for a row of the table. Its text has no headings from above the passage."""
    position = {name: row[name] for name in ("path", "line", "page", "start", "end")}
    text = row["text"][row["titles"] :]
    return Hit(text=text, score=score, parts=parts, copies=tuple(copies), **position)


def where_sql(path: str | None, since: datetime | None) -> str:
    r"""The SQL condition on a file's path and date; "" if there is none.

    In `path`, `*` stands for any characters and `?` for one. A letter with marks matches however
    the path spells it, with composed or with combining characters.

    >>> where_sql("*.md", None)
    "regexp_like(path, '^(?s:.*\\.md)$')"
    """
    conditions = []
    if path is not None:
        pattern = "".join(map(_spellings, unicodedata.normalize("NFC", path)))
        conditions.append(f"regexp_like(path, {quote(f'^(?s:{pattern})$')})")
    if since is not None:
        conditions.append(f"modified >= {int(since.timestamp())}")
    return " AND ".join(conditions)


def _spellings(character: str) -> str:
    """The pattern for one character of a path's pattern, in every form of Unicode."""
    if character == "*":
        return ".*"
    if character == "?":
        return r".\p{M}*"
    spellings = [character]
    while len(unicodedata.decomposition(spellings[-1][0]).split()) == 2:
        last = spellings[-1]
        base, mark = unicodedata.decomposition(last[0]).split()
        if base.startswith("<"):
            break
        spellings.append(chr(int(base, 16)) + chr(int(mark, 16)) + last[1:])
    if (decomposed := unicodedata.normalize("NFD", character)) not in spellings:
        spellings.append(decomposed)
    if len(spellings) == 1:
        return re.escape(character)
    return f"(?:{'|'.join(map(re.escape, spellings))})"


def quote(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
