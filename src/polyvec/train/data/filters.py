"""Filters for training pairs. Every filter returns the positions of the pairs to keep, in order.

    pairs = pairs.take(keep_unlike(pairs.texts, pairs.partners))

Axes in this file: N pairs, D width.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int

MIN_OVERLAP_WORDS = 4
"""Texts with fewer words never overlap (arXiv:2409.10173, section 4.2)."""

MAX_OVERLAP = 0.8
"""Fraction of common words from which pairs are dropped (arXiv:2409.10173, section 4.2)."""

SHINGLE_CHARACTERS = 5
"""Length of the character runs by which near duplicates are compared. Words would not work for
Chinese or Thai."""


def overlaps(text: str, partner: str, *, share: float = MAX_OVERLAP) -> bool:
    """Whether the two texts of a pair share too many words to be useful for training.

    The paper's rule is that at least 80 % of the words (minimum four) of the shorter text are
    substrings of the longer one. This function splits the text with fewer characters at white
    space. The pair overlaps if this text has at least four words, and if at least `share` of them
    occur anywhere in the longer text. Case is ignored, and a repeated word counts each time. In a
    script without spaces a text is one word, so the rule never applies.

    >>> overlaps("the fox sleeps here", "Here sleeps the red fox, in the snow")
    True
    >>> overlaps("the fox sleeps", "the fox sleeps in the snow")
    False
    """
    shorter, longer = sorted((text.casefold(), partner.casefold()), key=len)
    words = shorter.split()
    common = sum(word in longer for word in words)
    return len(words) >= MIN_OVERLAP_WORDS and common >= share * len(words)


def keep_unlike(
    texts: Sequence[str], partners: Sequence[str], *, share: float = MAX_OVERLAP
) -> list[int]:
    """Keep pairs that do not overlap (`overlaps`)."""
    pairs = enumerate(zip(texts, partners, strict=True))
    return [i for i, (text, partner) in pairs if not overlaps(text, partner, share=share)]


def normalise(text: str) -> str:
    r"""Normalise case, character width, the form of accents, and white space.

    >>> normalise(" Ｔhe  FOX\n")
    'the fox'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def keep_distinct(
    texts: Sequence[str], *, likeness: float = 0.8, num_hashes: int = 128, seed: int = 0
) -> list[int]:
    """Keep texts that are not near duplicates of an earlier kept text.

    Two texts are near duplicates if the sets of their five-character runs have a Jaccard
    similarity of at least `likeness`, after `normalise`. Candidates come from MinHash (Broder 1997)
    and are then compared exactly. For this reason no text is dropped wrongly, but about one in a
    hundred near duplicates close to the threshold may stay. Requires `datasketch`.
    """
    from datasketch import MinHash, MinHashLSH

    # A lower threshold finds nearly all candidates; the exact comparison drops the others.
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
    return {
        text[i : i + SHINGLE_CHARACTERS] for i in range(max(1, len(text) - SHINGLE_CHARACTERS + 1))
    }


def keep_languages(
    texts: Sequence[str], langs: Sequence[str], *, top: int = 3, min_characters: int = 20
) -> list[int]:
    """Keep texts whose language is among the `top` most likely ones of a language identifier.

    Texts of fewer than `min_characters` characters, and texts in a language that the identifier
    does not know, are kept. Language codes are ISO 639-1, with or without a script ("zh-Hant").
    Requires `py3langid`.
    """
    import py3langid

    known = {lang for lang, _ in py3langid.rank("language")}
    kept = []
    for i, (text, lang) in enumerate(zip(texts, langs, strict=True)):
        code = lang.partition("-")[0]
        unknown = len(text) < min_characters or code not in known
        if unknown or code in [likely for likely, _ in py3langid.rank(text)[:top]]:
            kept.append(i)
    return kept


def keep_consistent(
    texts: Float32[np.ndarray, "N D"],
    partners: Float32[np.ndarray, "N D"],
    groups: Int[np.ndarray, " N"],
    *,
    top: int = 2,
    block_size: int = 512,
) -> list[int]:
    """Keep pairs whose partner is among the `top` nearest of all partners (E5, arXiv:2212.03533).

    Inputs are unit vectors. Partners of the pair's own group are ignored. The time grows with the
    square of N, so filter a few hundred thousand pairs at a time.
    """
    kept: list[int] = []
    for start, stop in _parts(len(texts), block_size):
        scores = texts[start:stop] @ partners.T
        own = scores[np.arange(stop - start), np.arange(start, stop)]
        better = (scores > own[:, None]) & (groups[start:stop, None] != groups)
        kept += (start + np.flatnonzero(better.sum(1) < top)).tolist()
    return kept


def _parts(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(start + size, total)
