"""Words: how texts are normalised and split, and how much a word says about a text.

The index and the questions are normalised by one function, so that a word is found however it is
written: in capitals, with composed or combining characters, or with invisible characters.
"""

import math
import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache

import lancedb
from lancedb.index import FTS

from polyvec.chunking import SURROGATES
from polyvec.tokenizer import Tokenizer

WORD_INDEX = FTS(base_tokenizer="icu/split", stem=False, remove_stop_words=False)
"""The full-text index of normalised texts. Words are those of Unicode's ICU, which also splits
scripts without spaces.

Words are not stemmed and stop words are kept, since both depend on one language and the files of a
folder are in many.
"""

INVISIBLE = "\u034f\u115f\u1160\u3164\uffa0"
"""Invisible characters that Unicode does not count among the format characters (Cf)."""

TATWEEL = "\u0640"
"""The character that stretches Arabic words. It is not a letter."""

SHORT_I = "й"
"""The only letter with a mark that is not folded: in Cyrillic it is another letter than и."""

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts that do not write spaces between words."""

QUOTED = re.compile(r'"([^"]+)"|“([^”“]+)”|„([^“”„]+)[“”]|«([^»«]+)»|「([^」「]+)」')
"""A phrase in quotation marks: those of keyboards, and those that programs put in their place."""

SIGNS = "A-Za-zÀ-ɏͰ-ԯ0-9_"
"""The letters and digits of which names and codes consist."""

CODE = re.compile(
    rf"""
    (?<![{SIGNS}.:/@+-])
    (?:
        (?=[{SIGNS}.:/@+-]*\d)(?=[{SIGNS}.:/@+-]*[^\W\d_])[{SIGNS}.:/@+-]{{3,}}  # dc210.conf
        | \d{{5,}}                                        # 20931
        | [{SIGNS}]*[^\W_]_[^\W_][{SIGNS}]*               # sem_getvalue
        | --[a-z][a-z-]+                                  # --split-string
        | /[{SIGNS}.-]+(?:/[{SIGNS}.-]+)+                 # /etc/hosts
    )
    """,
    re.VERBOSE,
)
"""A name or a code for which there is no other word: a passage with the answer contains it."""

QUANTITY = re.compile(r"\d+[.,:]?\d*[^\W\d_]{1,4}")
"""A number with a unit or an ending, such as 20th or 16gb. It is not a code."""

MAX_CODES = 8
"""The number of a question's codes that are looked up."""


def normalise(text: str) -> str:
    """The text in the form in which words are compared, on one line.

    1. Compatible characters become one (NFKC), and case is folded.
    2. Marks that are not letters are dropped: accents, and the points of Hebrew and Arabic. The
       vowel signs of Indic scripts and of Thai stay, and so do the voicing marks of Japanese.
    3. Invisible characters are dropped: soft hyphens, joiners and variation selectors.

    >>> normalise("I\u0307stanbul CAFE\u0301 \ufb01ne")
    'istanbul cafe fine'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    composed = unicodedata.normalize("NFKC", SURROGATES.sub("\ufffd", text))
    folded = "".join(map(_fold, composed.casefold()))
    return " ".join(unicodedata.normalize("NFC", folded).split())


@lru_cache(maxsize=65_536)
def _fold(character: str) -> str:
    """The letter without its marks; "" for a mark or an invisible character."""
    if character.isascii() or character == SHORT_I:
        return character
    parts = unicodedata.normalize("NFKD", character)
    return "".join(part for part in parts if not _is_ignorable(part)).casefold()


def _is_ignorable(character: str) -> bool:
    mark = unicodedata.combining(character)
    # Classes 10 to 36 are the points of Hebrew, Arabic and Syriac, those from 200 on are accents,
    # and 1 strikes letters through. The others are parts of words: viramas, nuktas, voicing marks,
    # and the vowels and tones of Thai, Lao and Tibetan.
    if mark == 1 or 10 <= mark <= 36 or mark >= 200:
        return True
    if unicodedata.category(character) == "Cf" or character in INVISIBLE or character == TATWEEL:
        return True
    return 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF


def split_question(question: str) -> tuple[str, list[str]]:
    """A question without quotation marks, and the normalised phrases that stood in them.

    >>> split_question('who signed the "Rental contract"?')
    ('who signed the  Rental contract ?', ['rental contract'])
    """
    phrases = [normalise(_inner(found)) for found in QUOTED.finditer(question)]
    plain = QUOTED.sub(lambda found: f" {_inner(found)} ", question)
    return plain, [phrase for phrase in phrases if phrase]


def _inner(found: re.Match[str]) -> str:
    return next(filter(None, found.groups()))


def find_codes(question: str) -> list[str]:
    """The names and codes of a question, normalised: words with digits or with signs inside.

    >>> find_codes("What does ERR-4471 mean for sem_getvalue in the 20th minute?")
    ['err-4471', 'sem_getvalue']
    """
    found = (normalise(code[0].rstrip(".:/@+-")) for code in CODE.finditer(question))
    codes = dict.fromkeys(code for code in found if code and not QUANTITY.fullmatch(code))
    return list(codes)[:MAX_CODES]


def contains_sql(column: str, phrase: str) -> str:
    r"""The SQL condition that a column of normalised text contains a normalised phrase.

    The phrase neither begins nor ends inside a word of a script that writes spaces between words.

    >>> contains_sql("words", "the fox")
    "regexp_like(words, '\\bthe fox\\b')"
    """
    start = r"\b" if _is_spaced(phrase[0]) else ""
    end = r"\b" if _is_spaced(phrase[-1]) else ""
    pattern = start + re.escape(phrase).replace(r"\ ", " ") + end
    return f"regexp_like({column}, '{pattern.replace(chr(39), 2 * chr(39))}')"


def _is_spaced(character: str) -> bool:
    """Whether a character belongs to words between which its script writes spaces."""
    is_word = character.isalnum() or character == "_"
    return is_word and not unicodedata.name(character, "").startswith(UNSPACED)


def index_words(text: str) -> set[str]:
    """The words of a text in the form in which the index stores them.

    >>> sorted(index_words("Two cafés: the Café, 猫"))
    ['cafe', 'cafes', 'the', 'two', '猫']
    """
    words = lancedb.tokenize(
        normalise(text),
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
    composed = unicodedata.normalize("NFC", SURROGATES.sub("\ufffd", text))
    visible = "".join(
        character
        for character in composed
        if character.isascii() or unicodedata.category(character) != "Cf"
    )
    words = lancedb.tokenize(
        visible,
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


def telling_words(question: str, tokenizer: Tokenizer) -> set[str]:
    """The normalised words of a question that say what it is about, without frequent ones."""
    weights = weigh_words(index_words(question), tokenizer)
    return {word for word, weight in weights.items() if 2 * weight >= max(weights.values())}
