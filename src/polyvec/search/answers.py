"""Answers: the passages that answer a question best, and whether they are likely to answer it.

1. The components retrieve and score candidates (`retrieval`). Their scores are fused (`fusion`).
2. Phrases in quotation marks are a condition. A name or a code of the question that occurs in the
   files gives the component bm25 a high weight, since no other word stands for it.
3. Of identical passages one is kept, and of each file as many as are asked for.
4. The passages are not likely to answer the question if none of them is near enough to its meaning
   (`floors`), or if no passage contains one of its names and codes.

Axes in this file: T tokens, V numbers in a token vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import overload

import numpy as np
from jaxtyping import Float32
from lancedb.table import Table

from polyvec.chunking import split_sentences
from polyvec.encoder import Encoder
from polyvec.heads import maxsim
from polyvec.search.floors import is_near
from polyvec.search.fusion import CODE_WEIGHT, FusionMethod, PassageKey, choose_weights, fuse, total
from polyvec.search.lexical import contains_sql, find_codes, split_question
from polyvec.search.retrieval import (
    MIN_CANDIDATES,
    PASSAGE,
    QUERY,
    Candidates,
    Hit,
    find_candidates,
    list_heads,
    make_hit,
    question_outputs,
    quote,
    rerank_hits,
    where_sql,
)
from polyvec.search.vectors import Quantise, Row, unpack_token_bits
from polyvec.tasks import choose_task


@dataclass(frozen=True, slots=True)
class Answer(Sequence[Hit]):
    """The passages that a search found, the best first, and what it noticed about the question."""

    hits: list[Hit]

    is_likely: bool
    """Whether one of the passages is likely to answer the question."""

    missing: tuple[str, ...] = ()
    """The names and codes of the question that no passage contains."""

    best_score: float | None = None
    """The score of the best passage, even if it is too low to be shown; None if there is none."""

    @overload
    def __getitem__(self, position: int) -> Hit: ...
    @overload
    def __getitem__(self, position: slice) -> list[Hit]: ...
    def __getitem__(self, position: int | slice) -> Hit | list[Hit]:
        """One or several of the passages."""
        return self.hits[position]

    def __len__(self) -> int:
        """The number of passages."""
        return len(self.hits)


def answer_question(
    table: Table,
    encoder: Encoder,
    question: str,
    *,
    dim: int,
    quantise: Quantise,
    floors: Mapping[str, float],
    top: int,
    by: FusionMethod,
    weights: Mapping[str, float],
    rerank: int,
    path: str | None,
    since: datetime | None,
    per_file: int | None,
    min_score: float,
    mark: bool,
) -> Answer:
    """The answer from an index's table. `Index.search` describes the options.

    `floors` are those of the model (`floors.measure_floors`).
    """
    heads = list_heads(encoder.config)
    chosen = choose_weights(weights, heads)
    if rerank and "multi-vector" not in heads:
        raise ValueError("this model has no multi-vector head to rerank with: leave it out")
    plain, phrases = split_question(question)
    asked = " ".join(plain.split()) if phrases else question
    filters = [
        *filter(None, [where_sql(path, since)]),
        *(contains_sql("words", phrase) for phrase in phrases),
    ]
    outputs = question_outputs(chosen, rerank=bool(rerank))
    encoded = encoder.encode_all([asked], task=QUERY, dim=dim, outputs=outputs, progress=False)
    limit = max(top, rerank)

    def find(*conditions: str) -> Candidates:
        return find_candidates(
            table,
            encoder.tokenizer,
            asked,
            encoded,
            quantise=quantise,
            components=list(chosen),
            depth=max(MIN_CANDIDATES, 2 * limit),
            where=" AND ".join([*filters, *conditions]),
        )

    candidates = find()
    codes = find_codes(asked)
    missing = find_missing(table, codes, filters)
    if len(codes) > len(missing) and "bm25" in chosen and "bm25" not in weights:
        chosen["bm25"] = CODE_WEIGHT
    while True:
        fused = fuse(candidates.scores, chosen, by, candidates.max_scores)
        selected = select_passages(list(fused), candidates.rows, per_file)
        if len(selected) >= limit or candidates.is_complete or per_file is None:
            break
        # The passages of a few files have taken all places: other files are looked for.
        paths = ", ".join(sorted({quote(path) for path, _ in selected}))
        candidates = candidates.join(find(f"path NOT IN ({paths})"))
    hits = [
        make_hit(candidates.rows[key], total(fused[key]), fused[key], copies)
        for key, copies in list(selected.items())[:limit]
    ]
    is_likely = not missing and any(is_near(hit.parts, floors) for hit in hits[:top])
    if rerank and hits:
        texts = [candidates.rows[key]["text"] for key in list(selected)[:limit]]
        hits = rerank_hits(encoder, encoded, hits, texts)
    shown = [hit for hit in hits[:top] if hit.score >= min_score]
    if mark and "maxsim" in chosen:
        assert encoded.multi_vector is not None
        rows = [candidates.rows[hit.path, hit.start] for hit in shown]
        shown = mark_sentences(shown, rows, encoded.multi_vector[0], encoder)
    return Answer(shown, is_likely, missing, hits[0].score if hits else None)


def find_missing(table: Table, codes: Sequence[str], filters: Sequence[str]) -> tuple[str, ...]:
    """The normalised names and codes that no passage contains, among those the filters leave."""
    return tuple(
        code
        for code in codes
        if not table.count_rows(" AND ".join([*filters, contains_sql("words", code)]))
    )


def select_passages(
    ranked: Sequence[PassageKey], rows: Mapping[PassageKey, Row], per_file: int | None
) -> dict[PassageKey, list[str]]:
    """The passages to show, the best first, and for each the other files that contain it.

    Of identical passages only the first is kept, and of each file at most `per_file` passages.
    """
    originals: dict[str, PassageKey] = {}
    copies: dict[PassageKey, list[str]] = {}
    shown: dict[str, int] = {}
    for key in ranked:
        text, path = rows[key]["text"], key[0]
        if (original := originals.get(text)) is not None:
            if path != original[0] and path not in copies[original]:
                copies[original].append(path)
        elif per_file is None or shown.get(path, 0) < per_file:
            originals[text] = key
            shown[path] = shown.get(path, 0) + 1
            copies[key] = []
    return copies


def mark_sentences(
    hits: Sequence[Hit],
    rows: Sequence[Row],
    question: Float32[np.ndarray, "T V"],
    encoder: Encoder,
) -> list[Hit]:
    """The hits, each with the sentence whose tokens match the question best (MaxSim)."""
    prompt = choose_task(encoder.config.tasks, PASSAGE).prompt
    marked = []
    tokenised = encoder.tokenizer.encode([row["text"] for row in rows], [prompt] * len(rows))
    signs = (
        unpack_token_bits([row["token_bits"] for row in rows], question.shape[1]) if rows else []
    )
    for hit, row, tokens, vectors in zip(hits, rows, tokenised, signs, strict=True):
        # The last vector is that of </s>.
        starts = tokens.offsets[tokens.num_prompt : -1, 0] - row["titles"]
        scores: dict[tuple[int, int], float] = {}
        for start, end in split_sentences(hit.text):
            inside = (starts >= start) & (starts < end)
            if inside.any():
                end = start + len(hit.text[start:end].rstrip())
                scores[start, end] = float(maxsim(question, [vectors[:-1][inside]])[0])
        marked.append(replace(hit, sentence=max(scores, key=scores.__getitem__, default=None)))
    return marked
