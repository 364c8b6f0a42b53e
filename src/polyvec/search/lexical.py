"""Words: how the index splits texts into words, and how much a word says about a text."""

import math
import unicodedata
from collections.abc import Collection

import lancedb
from lancedb.index import FTS

from polyvec.chunking import SURROGATES
from polyvec.tokenizer import Tokenizer

WORD_INDEX = FTS(base_tokenizer="icu/split", stem=False, remove_stop_words=False)
"""The full-text index. Words are those of Unicode's ICU, which also splits scripts without spaces;
case and accents are folded.

Words are not stemmed and stop words are kept, since both depend on one language and the files of a
folder are in many.
"""


def index_words(text: str) -> set[str]:
    """The words of a text in the form in which the index stores them.

    >>> sorted(index_words("Two cafés: the Café, 猫"))
    ['cafe', 'cafes', 'the', 'two', '猫']
    """
    words = lancedb.tokenize(
        SURROGATES.sub("\ufffd", text),
        base_tokenizer=WORD_INDEX.base_tokenizer,
        stem=WORD_INDEX.stem,
        remove_stop_words=WORD_INDEX.remove_stop_words,
    )
    return {word.text for word in words}


def split_words(text: str) -> list[str]:
    """The words of a text as people read them, in lower case and with their accents.

    Each word contains a letter. A word of one character is kept only if it is an ideograph.

    >>> split_words("Don't feed 2 cats: 猫に注意")
    ["don't", 'feed', 'cats', '猫', '注意']
    """
    words = lancedb.tokenize(
        SURROGATES.sub("\ufffd", text),
        base_tokenizer="icu",
        stem=False,
        remove_stop_words=False,
        ascii_folding=False,
    )
    return [word.text for word in words if _is_informative(word.text)]


def _is_informative(word: str) -> bool:
    if len(word) == 1:
        return unicodedata.name(word, "").startswith("CJK UNIFIED")
    return any(map(str.isalpha, word))


def weigh_words(words: Collection[str], tokenizer: Tokenizer) -> dict[str, float]:
    """The weight of each word in any language: the rarer the word, the higher its weight.

    The vocabulary of the model is sorted by frequency. The logarithm of the position of a word's
    rarest piece therefore approximates the rarity of the word (Zipf). It is squared, so that a word
    which is frequent in only one language still has a low weight. Pieces that were added to a
    finished vocabulary stand at its end and count as rare.
    """
    tokenised = tokenizer.encode(list(words), [""] * len(words))
    return {
        word: math.log(2 + int(tokens.ids.max())) ** 2
        for word, tokens in zip(words, tokenised, strict=True)
    }
