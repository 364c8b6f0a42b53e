"""Whole-word masking for stage 1 (arXiv:2409.10173, section 4.1).

A word begins with a token whose piece starts with "▁" and ends before the next such token. A word
has at most `MAX_WORD_TOKENS` tokens. Special tokens belong to no word and are never masked.

Axes in this file: V vocabulary, N texts, T tokens of one text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from polyvec.train.data.tokens import TokenIds

MAX_WORD_TOKENS = 6
"""Chinese, Japanese and Thai have no spaces between words. Without a limit, whole sentences would
be masked at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """The properties of a tokenizer's pieces that masking depends on."""

    starts: Bool[np.ndarray, " V"]
    """Whether the piece begins a word."""

    special: Bool[np.ndarray, " V"]
    """Whether the piece is special. Special pieces are never masked and never replace others."""

    mask_id: int
    """Token id of `<mask>`."""


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer. Raises ValueError if it has no `<mask>`."""
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


def word_ids(ids: Int[np.ndarray, " T"], vocabulary: Vocabulary) -> Int[np.ndarray, " T"]:
    """The number of each token's word, from 0; -1 for special tokens.

    Tokens between a special token and the first "▁" form a word.
    """
    special = vocabulary.special[ids]
    begins = vocabulary.starts[ids] | np.append(True, special[:-1])
    position = np.arange(len(ids))
    first = np.maximum.accumulate(np.where(begins, position, 0))
    begins |= (position - first) % MAX_WORD_TOKENS == 0
    words = np.cumsum(begins & ~special) - 1
    return np.where(special, -1, words)


def mask_words(
    texts: TokenIds, vocabulary: Vocabulary, *, ratio: float, seed: Sequence[int]
) -> tuple[list[Int[np.ndarray, " _T"]], list[Int[np.ndarray, " _masked"]]]:
    """Mask random words; return the masked texts and the masked positions of each text.

    Each word is chosen with probability `ratio`, with all its tokens. Of the chosen tokens, 80 %
    become `<mask>`, 10 % become a random piece that is not special, and 10 % stay (Devlin et al.
    2019). If no word is chosen at random, the first word of the longest text is.
    """
    rng = np.random.default_rng(seed)
    ordinary = np.flatnonzero(~vocabulary.special)
    words = [word_ids(text, vocabulary) for text in texts]
    chosen = [rng.random(own.max(initial=-1) + 1) < ratio for own in words]
    if not any(picks.any() for picks in chosen):
        longest = max(chosen, key=len)
        longest[:1] = True
    masked_texts, masked_positions = [], []
    for text, own, picks in zip(texts, words, chosen, strict=True):
        positions = np.flatnonzero((own >= 0) & np.append(picks, False)[own])
        fate = rng.random(len(positions))
        masked = text.copy()
        masked[positions[fate < 0.8]] = vocabulary.mask_id
        random = positions[(fate >= 0.8) & (fate < 0.9)]
        masked[random] = rng.choice(ordinary, len(random))
        masked_texts.append(masked)
        masked_positions.append(positions)
    return masked_texts, masked_positions
