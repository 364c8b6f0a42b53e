"""Words: how an index tells them apart, and how much each of them says."""

import math
import unicodedata
from collections.abc import Collection

import lancedb
from lancedb.index import FTS

from polyvec.chunking import SURROGATES
from polyvec.tokenizer import Tokenizer

WORDS = FTS(base_tokenizer="icu/split", stem=False, remove_stop_words=False)
"""Words as Unicode's ICU finds them, in scripts without spaces too; case and accents are folded.

No stemming and no stop words: both belong to one language, and files are in many.
"""


def index_words(text: str) -> set[str]:
    """The words of a text as an index has them.

    >>> sorted(index_words("Two cafés: the Café, 猫"))
    ['cafe', 'cafes', 'the', 'two', '猫']
    """
    found = lancedb.tokenize(
        SURROGATES.sub("\ufffd", text),
        base_tokenizer=WORDS.base_tokenizer,
        stem=WORDS.stem,
        remove_stop_words=WORDS.remove_stop_words,
    )
    return {word.text for word in found}


def split_words(text: str) -> list[str]:
    """The words of a text as ICU finds them, for people to read: in lower case, accents kept.

    They have a letter each, and two signs unless it is an ideograph.

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
    return [word.text for word in words if _says_something(word.text)]


def _says_something(word: str) -> bool:
    if len(word) == 1:
        return unicodedata.name(word, "").startswith("CJK UNIFIED")
    return any(map(str.isalpha, word))


def weigh_words(words: Collection[str], tokenizer: Tokenizer) -> dict[str, float]:
    """How much each word says, in any language: the rarer in the model's vocabulary, the more.

    A piece's place in the vocabulary is its rank by frequency, so the logarithm of the place of a
    word's rarest piece is about how rare it is (Zipf). Squared, it outweighs what is frequent in
    one language alone. Pieces that were added to a finished vocabulary stand last, as rare ones.
    """
    read = tokenizer.encode(list(words), [""] * len(words))
    return {
        word: math.log(2 + int(tokens.ids.max())) ** 2
        for word, tokens in zip(words, read, strict=True)
    }
