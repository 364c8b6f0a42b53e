"""Whole-word masking, one language a batch: what stage 1 reads (arXiv:2409.10173, section 4.1).

A word is a run of tokens from one whose piece starts with "▁" to the next such, at most
`MAX_WORD` tokens long. Special tokens belong to no word and are never hidden.

Axes in this file: V vocabulary, N texts, T tokens of one text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

MAX_WORD = 6
"""Chinese, Japanese and Thai put no spaces between words: without a limit, whole sentences would
be hidden at once."""

Tokens = Sequence[Int[np.ndarray, " _T"]]
"""Token ids of each text, special tokens included."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """What masking needs to know of a tokenizer."""

    starts: Bool[np.ndarray, " V"]
    """Whether a piece begins a word."""

    special: Bool[np.ndarray, " V"]
    """Whether it is a special token, which is neither hidden nor put in place of another."""

    mask_id: int
    """`<mask>`."""


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The pieces of a tokenizer; ValueError if it has no `<mask>`."""
    mask_id = tokenizer.token_to_id("<mask>")
    if mask_id is None:
        raise ValueError("masked-LM training needs a tokenizer with the token <mask>")
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    starts = np.zeros(max(pieces.values()) + 1, bool)
    starts[[number for piece, number in pieces.items() if piece.startswith("▁")]] = True
    special = np.zeros(len(starts), bool)
    special[[i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = (
        True
    )
    special[[pieces[name] for name in ("<s>", "<pad>", "</s>", "<unk>") if name in pieces]] = True
    return Vocabulary(starts=starts, special=special, mask_id=mask_id)


def number_words(ids: Int[np.ndarray, " T"], vocabulary: Vocabulary) -> Int[np.ndarray, " T"]:
    """The number of each token's word, counted from 0; -1 for special tokens.

    Tokens between a special one and the first "▁" are a word as well.
    """
    special = vocabulary.special[ids]
    begins = vocabulary.starts[ids] | np.append(True, special[:-1])
    where = np.arange(len(ids))
    first = np.maximum.accumulate(np.where(begins, where, 0))
    begins |= (where - first) % MAX_WORD == 0
    words = np.cumsum(begins & ~special) - 1
    return np.where(special, -1, words)


def hide_words(
    texts: Tokens, vocabulary: Vocabulary, *, ratio: float, seed: Sequence[int]
) -> tuple[list[Int[np.ndarray, " _T"]], list[Int[np.ndarray, " _hidden"]]]:
    """The texts as the model sees them, and the places in each that it has to guess.

    Each word is chosen with probability `ratio`, all its tokens together. Of the chosen tokens
    80 % become `<mask>`, 10 % any piece that is not special, 10 % stay (Devlin et al. 2019).
    Where chance chose nothing at all, the longest text gives a word.
    """
    rng = np.random.default_rng(seed)
    ordinary = np.flatnonzero(~vocabulary.special)
    words = [number_words(text, vocabulary) for text in texts]
    chosen = [rng.random(own.max(initial=-1) + 1) < ratio for own in words]
    if not any(picks.any() for picks in chosen):
        longest = max(chosen, key=len)
        longest[:1] = True
    shown, places = [], []
    for text, own, picks in zip(texts, words, chosen, strict=True):
        hidden = np.flatnonzero((own >= 0) & np.append(picks, False)[own])
        fate = rng.random(len(hidden))
        seen = text.copy()
        seen[hidden[fate < 0.8]] = vocabulary.mask_id
        random = hidden[(fate >= 0.8) & (fate < 0.9)]
        seen[random] = rng.choice(ordinary, len(random))
        shown.append(seen)
        places.append(hidden)
    return shown, places


def rotate_languages(
    sizes: Mapping[str, int],
    *,
    steps: int,
    exponent: float,
    shares: Mapping[str, float] | None = None,
) -> list[str]:
    """The language of every step: each in turn, as often as its share of the run allows.

    A language of n texts has a share like n ** `exponent` (Conneau et al. 2020, section 3.1);
    `shares` sets a language's part of the whole outright. No language comes twice running unless
    it has more than a half.

    >>> turns = rotate_languages({"en": 900, "de": 100}, steps=4000, exponent=0.5)
    >>> round(turns.count("de") / 4000, 2)  # 10 of 10 + 30, for roots of 100 and 900
    0.25
    """
    fixed = {name: share for name, share in (shares or {}).items() if name in sizes}
    free = {name: size**exponent for name, size in sizes.items() if name not in fixed}
    left = 1 - sum(fixed.values())
    parts = fixed | {name: left * part / sum(free.values()) for name, part in free.items()}
    credit = dict.fromkeys(parts, 0.0)
    chosen = []
    for _ in range(steps):
        for name, part in parts.items():
            credit[name] += part
        others = [name for name in parts if [name] != chosen[-1:] or credit[name] > 1]
        name = max(others or parts, key=credit.__getitem__)
        credit[name] -= 1
        chosen.append(name)
    return chosen


def plan_languages(
    langs: Sequence[str],
    *,
    steps: int,
    batch_size: int,
    exponent: float,
    seed: int,
    shares: Mapping[str, float] | None = None,
) -> list[Int[np.ndarray, " _rows"]]:
    """The rows of every step, all of one language (`rotate_languages`).

    A language's rows come in random order, none again before all have come.
    """
    rows: dict[str, list[int]] = {}
    for row, lang in enumerate(langs):
        rows.setdefault(lang, []).append(row)
    sizes = {lang: len(own) for lang, own in rows.items()}
    order = rotate_languages(sizes, steps=steps, exponent=exponent, shares=shares)
    rng = np.random.default_rng(seed)
    waiting = {lang: np.empty(0, np.int64) for lang in rows}
    plan = []
    for lang in order:
        while len(waiting[lang]) < batch_size:
            waiting[lang] = np.append(waiting[lang], rng.permutation(rows[lang]))
        plan.append(waiting[lang][:batch_size])
        waiting[lang] = waiting[lang][batch_size:]
    return plan
