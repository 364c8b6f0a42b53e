"""Hard negatives: texts that look like the partner of a query and are not.

A candidate is any partner of the rows. It is passed over if it is

- the partner of a row of the query's own group,
- the query itself, or
- so good that it may be a right answer that nobody marked: its score comes within `margin` of the
  partner's (Moreira et al. 2024, arXiv:2407.15831, section 3: 95 % of the positive's score).

Scores are a model's cosines, or BM25 over the pieces of its tokenizer, so that languages without
spaces have words too. Every candidate is scored: nothing is approximate.

Axes in this file: N queries, M candidates, D width.
"""

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized
from jaxtyping import Float32
from tqdm import tqdm

from polyvec.encoder import Encoder
from polyvec.train.data.pairs import Rows

Score = Callable[[int, int], Float32[np.ndarray, "N M"]]
"""Scores of queries start to stop with all candidates; higher is better."""

AT_ONCE = 256
"""Queries scored together."""


def mine(
    rows: Rows,
    score: Score,
    *,
    num: int = 7,
    margin: float = 0.95,
    skip: int = 0,
    progress: bool | None = None,
) -> list[list[str]]:
    """For every row its hardest `num` negatives, the hardest first; fewer where there are no more.

    `score` rates `candidates(rows)` in their order. `skip` passes over the first few of what
    remains, against false negatives where the scores mean little.
    """
    texts = candidates(rows)
    place = {text: i for i, text in enumerate(texts)}
    own = np.array([place[partner] for partner in rows.partners])
    friends: dict[int, set[int]] = {}
    for group, candidate in zip(rows.groups.tolist(), own.tolist(), strict=True):
        friends.setdefault(group, set()).add(candidate)
    found: list[list[str]] = []
    hide = None if progress is None else not progress
    with tqdm(total=len(rows), desc="negatives", unit="query", disable=hide) as bar:
        for start in range(0, len(rows), AT_ONCE):
            stop = min(start + AT_ONCE, len(rows))
            for i, scores in enumerate(score(start, stop), start):
                scores = scores.astype(np.float64)
                best = scores[own[i]]
                # As printed, margin * best; a negative cosine must not turn the margin around.
                scores[scores > best - (1 - margin) * abs(best)] = -np.inf
                scores[list(friends[int(rows.groups[i])])] = -np.inf
                scores[place.get(rows.texts[i], own[i])] = -np.inf
                found.append([texts[j] for j in _top(scores, skip + num)[skip:]])
            bar.update(stop - start)
    return found


def candidates(rows: Rows) -> list[str]:
    """The distinct partners, in the order of their first row."""
    return [*dict.fromkeys(rows.partners)]


def _top(scores: np.ndarray, num: int) -> list[int]:
    """Positions of the largest finite scores, best first; the earlier of two equals first."""
    order = np.argsort(-scores, kind="stable")[:num]
    return [int(i) for i in order if np.isfinite(scores[i])]


def cosine_scores(
    encoder: Encoder,
    rows: Rows,
    *,
    tasks: tuple[str | None, str | None] = ("retrieval.query", "retrieval.passage"),
    progress: bool | None = None,
) -> Score:
    """Cosines of a model's vectors; `tasks` read queries and candidates."""
    queries = encoder.encode(rows.texts, task=tasks[0], progress=progress)
    documents = encoder.encode(candidates(rows), task=tasks[1], progress=progress)
    return lambda start, stop: queries[start:stop] @ documents.T


def bm25_scores(encoder: Encoder, rows: Rows) -> Score:
    """BM25 (Lucene's form, k1 1.5, b 0.75) over the pieces of the model's tokenizer."""
    queries, documents = (_pieces(encoder, texts) for texts in (rows.texts, candidates(rows)))
    vocab = {str(piece): piece for piece in range(encoder.config.vocab_size)}
    index = bm25s.BM25()
    index.index(Tokenized(documents, vocab), show_progress=False)

    def score(start: int, stop: int) -> Float32[np.ndarray, "N M"]:
        return np.stack([index.get_scores_from_ids(ids) for ids in queries[start:stop]])

    return score


def _pieces(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    """Each text's pieces without `<s>` and `</s>`."""
    found = encoder.tokenizer.encode(texts, [""] * len(texts))
    return [tokens.ids[1:-1].tolist() for tokens in found]


def alternate(*mined: list[list[str]], num: int = 7) -> list[list[str]]:
    """Negatives of several miners taken in turn, each text once, `num` a row.

    >>> alternate([["a", "b"]], [["b", "c"]], num=3)
    [['a', 'b', 'c']]
    """
    return [
        [*dict.fromkeys(t for t in chain(*zip_longest(*lists)) if t is not None)][:num]
        for lists in zip(*mined, strict=True)
    ]
