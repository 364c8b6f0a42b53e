"""Which training pairs to keep. Every filter gives the positions of what stays, in order.

    rows = rows.take(keep_unlike(rows.texts, rows.partners))

Axes in this file: N pairs, D width.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int

from polyvec.encoder import Encoder
from polyvec.train.data.pairs import Rows

FEWEST_WORDS = 4
OVERLAP = 0.8
"""The paper's numbers (arXiv:2409.10173, section 4.2)."""

SHINGLE = 5
"""Characters that near duplicates are compared by: words would not serve Chinese or Thai."""


def overlaps(text: str, partner: str, *, share: float = OVERLAP) -> bool:
    """Whether a pair says too much in the same words to teach anything.

    The paper: at least 80 % of the words (minimum four) of the shorter text are substrings of the
    longer one. Read here as: the shorter text, by characters, is split at white space; if it has
    four words or more, and at least `share` of them, counted as often as they occur, are found
    anywhere in the longer text, case ignored. In a script without spaces a text is one word, and
    the rule says nothing.

    >>> overlaps("the fox sleeps here", "Here sleeps the red fox, in the snow")
    True
    >>> overlaps("the fox sleeps", "the fox sleeps in the snow")
    False
    """
    shorter, longer = sorted((text.casefold(), partner.casefold()), key=len)
    words = shorter.split()
    found = sum(word in longer for word in words)
    return len(words) >= FEWEST_WORDS and found >= share * len(words)


def keep_unlike(
    texts: Sequence[str], partners: Sequence[str], *, share: float = OVERLAP
) -> list[int]:
    """Pairs that do not overlap (`overlaps`)."""
    pairs = enumerate(zip(texts, partners, strict=True))
    return [i for i, (text, partner) in pairs if not overlaps(text, partner, share=share)]


def normalise(text: str) -> str:
    r"""The text without what does not change its meaning: case, width, accents' form, spaces.

    >>> normalise(" Ｔhe  FOX\n")
    'the fox'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def keep_distinct(
    texts: Sequence[str], *, likeness: float = 0.8, num_hashes: int = 128, seed: int = 0
) -> list[int]:
    """Texts that are no near duplicate of one kept before them.

    Two texts are near duplicates if the sets of their runs of five characters, normalised, have a
    Jaccard similarity of `likeness` or more. Candidates come from MinHash (Broder 1997) and are
    then compared exactly: a text is never dropped wrongly, and one in some hundred near duplicates
    at the very threshold may stay. Needs `datasketch`.
    """
    from datasketch import MinHash, MinHashLSH

    # A lower threshold finds nearly all candidates; the exact comparison makes up for it.
    index = MinHashLSH(threshold=0.8 * likeness, num_perm=num_hashes)
    kept: list[int] = []
    plain: dict[object, str] = {}
    seen: set[str] = set()
    for i, text in enumerate(texts):
        normal = normalise(text)
        if normal in seen:
            continue
        seen.add(normal)
        mine = _shingles(normal)
        sketch = MinHash(num_perm=num_hashes, seed=seed)
        sketch.update_batch([shingle.encode("utf-8", "replace") for shingle in sorted(mine)])
        near = (_shingles(plain[j]) for j in index.query(sketch))
        if any(len(mine & other) >= likeness * len(mine | other) for other in near):
            continue
        index.insert(i, sketch)
        plain[i] = normal
        kept.append(i)
    return kept


def _shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def keep_languages(
    texts: Sequence[str], langs: Sequence[str], *, top: int = 3, fewest: int = 20
) -> list[int]:
    """Texts whose language is among the `top` likeliest of a language identifier.

    A text of fewer than `fewest` characters, or in a language that the identifier does not know,
    stays: nothing could be said of it. Codes are ISO 639-1, with or without a script ("zh-Hant").
    Needs `py3langid`.
    """
    import py3langid

    known = {lang for lang, _ in py3langid.rank("language")}
    kept = []
    for i, (text, lang) in enumerate(zip(texts, langs, strict=True)):
        code = lang.partition("-")[0]
        silent = len(text) < fewest or code not in known
        if silent or code in [found for found, _ in py3langid.rank(text)[:top]]:
            kept.append(i)
    return kept


def keep_consistent(
    texts: Float32[np.ndarray, "N D"],
    partners: Float32[np.ndarray, "N D"],
    groups: Int[np.ndarray, " N"],
    *,
    top: int = 2,
    at_once: int = 512,
) -> list[int]:
    """Pairs whose partner is among the `top` nearest of all partners (E5, arXiv:2212.03533).

    Unit vectors in. Partners of the pair's own group do not count against it. Work grows with the
    square of N: filter some hundred thousand pairs at a time.
    """
    kept: list[int] = []
    for start, stop in _parts(len(texts), at_once):
        scores = texts[start:stop] @ partners.T
        own = scores[np.arange(stop - start), np.arange(start, stop)]
        better = (scores > own[:, None]) & (groups[start:stop, None] != groups)
        kept += (start + np.flatnonzero(better.sum(1) < top)).tolist()
    return kept


def keep_plausible(
    encoder: Encoder,
    rows: Rows,
    *,
    tasks: tuple[str | None, str | None] = (None, None),
    top: int = 2,
) -> list[int]:
    """`keep_consistent` with a model's own vectors; `tasks` read texts and partners."""
    left, right = (
        encoder.encode(rows.texts, task=tasks[0]),
        encoder.encode(rows.partners, task=tasks[1]),
    )
    return keep_consistent(left, right, rows.groups, top=top)


def _parts(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(start + size, total)
