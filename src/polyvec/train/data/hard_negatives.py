"""Hard negatives: texts that resemble the partner of a query and are wrong.

The candidates are all partners. A candidate is not used if

- it is the partner of a pair in the query's own group, or of a pair with the same query,
- it is the query itself, or
- its score exceeds `margin` times the partner's score, so that it may be a right answer without a
  label (Moreira et al. 2024, arXiv:2407.15831, section 3: 95 % of the positive's score).

Scores are a model's cosines, or BM25 over the pieces of its tokenizer, which also works for
languages without spaces. Every candidate is scored; there is no approximation.

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
from polyvec.tasks import PASSAGE, QUERY
from polyvec.train.data.pairs import Pairs

Score = Callable[[int, int], Float32[np.ndarray, "N M"]]
"""Scores of queries start to stop against all candidates. Higher is better."""

QUERIES_PER_BLOCK = 256
"""Queries that are scored together."""


def mine(
    pairs: Pairs,
    score: Score,
    *,
    num: int = 7,
    margin: float = 0.95,
    skip: int = 0,
    progress: bool | None = None,
) -> list[list[str]]:
    """The `num` hardest negatives of every pair, the hardest first, or fewer if there are fewer.

    `score` scores `candidates(pairs)` in their order. The `skip` hardest ones are not used, which
    avoids false negatives if the scores are unreliable.
    """
    texts = candidates(pairs)
    place = {text: i for i, text in enumerate(texts)}
    own = np.array([place[partner] for partner in pairs.partners])
    answers: dict[int | str, set[int]] = {}
    for query, group, candidate in zip(pairs.texts, pairs.groups.tolist(), own, strict=True):
        for key in (query, group):
            answers.setdefault(key, set()).add(int(candidate))
    negatives: list[list[str]] = []
    hide = None if progress is None else not progress
    with tqdm(total=len(pairs), desc="negatives", unit="query", disable=hide) as bar:
        for start in range(0, len(pairs), QUERIES_PER_BLOCK):
            stop = min(start + QUERIES_PER_BLOCK, len(pairs))
            for i, scores in enumerate(score(start, stop), start):
                scores = scores.astype(np.float64)
                best = scores[own[i]]
                # The paper has margin * best, which would be wrong for a negative cosine.
                scores[scores > best - (1 - margin) * abs(best)] = -np.inf
                scores[[*answers[int(pairs.groups[i])], *answers[pairs.texts[i]]]] = -np.inf
                scores[place.get(pairs.texts[i], own[i])] = -np.inf
                negatives.append([texts[j] for j in _top(scores, skip + num)[skip:]])
            bar.update(stop - start)
    return negatives


def candidates(pairs: Pairs) -> list[str]:
    """The distinct partners, in the order of their first pair."""
    return [*dict.fromkeys(pairs.partners)]


def _top(scores: np.ndarray, num: int) -> list[int]:
    """Positions of the largest finite scores, the largest first; equal scores keep their order."""
    order = np.argsort(-scores, kind="stable")[:num]
    return [int(i) for i in order if np.isfinite(scores[i])]


def cosine_scores(
    encoder: Encoder,
    pairs: Pairs,
    *,
    tasks: tuple[str | None, str | None] = (QUERY, PASSAGE),
    progress: bool | None = None,
) -> Score:
    """Cosines of a model's embeddings. `tasks` are those of queries and candidates."""
    queries = encoder.encode(pairs.texts, task=tasks[0], progress=progress)
    documents = encoder.encode(candidates(pairs), task=tasks[1], progress=progress)
    return lambda start, stop: queries[start:stop] @ documents.T


def bm25_scores(encoder: Encoder, pairs: Pairs) -> Score:
    """BM25 scores (Lucene's form, k1 1.5, b 0.75) over the pieces of the model's tokenizer."""
    queries, documents = (_pieces(encoder, texts) for texts in (pairs.texts, candidates(pairs)))
    vocab = {str(piece): piece for piece in range(encoder.config.vocab_size)}
    index = bm25s.BM25()
    index.index(Tokenized(documents, vocab), show_progress=False)

    def score(start: int, stop: int) -> Float32[np.ndarray, "N M"]:
        return np.stack([index.get_scores_from_ids(ids) for ids in queries[start:stop]])

    return score


def _pieces(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    """The pieces of each text, without `<s>` and `</s>`."""
    tokenised = encoder.tokenizer.encode(texts, [""] * len(texts))
    return [tokens.ids[1:-1].tolist() for tokens in tokenised]


def merge_negatives(*mined: list[list[str]], num: int = 7) -> list[list[str]]:
    """Merge the negatives of several miners in turn, each text once, up to `num` per pair.

    >>> merge_negatives([["a", "b"]], [["b", "c"]], num=3)
    [['a', 'b', 'c']]
    """
    return [
        [*dict.fromkeys(t for t in chain(*zip_longest(*lists)) if t is not None)][:num]
        for lists in zip(*mined, strict=True)
    ]
