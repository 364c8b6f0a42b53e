"""Filters of pairs, on cases with known results."""

import numpy as np
import pytest

from polyvec.train.data.filters import (
    keep_consistent,
    keep_distinct,
    keep_languages,
    keep_unlike,
    normalise,
    overlaps,
)


@pytest.mark.parametrize(
    ("text", "partner", "expected"),
    [
        ("a b c d", "a b c d", True),
        # Four of five words are exactly 80 %; three of four are not.
        ("one two three four nine", "one two three four five six seven", True),
        ("one two three nine", "one two three four five six seven", False),
        # Fewer than four words: the rule says nothing, not even of equal texts.
        ("red fox den", "red fox den", False),
        # The shorter text by characters decides, whichever side it is on.
        ("one two three four five six seven", "one two three four nine", True),
        ("incomprehensibilities", "a b c d e f g h i j", False),
        # Substrings count, across words and inside them.
        ("cat dog bird sun", "concatenate dogma blackbirds sundown", True),
        # Case is ignored, in every alphabet.
        ("DER FUCHS SCHLÄFT HIER", "der fuchs schläft hier immer", True),
        ("ЛИСА СПИТ В НОРЕ", "лиса спит в норе", True),
        # A repeated word counts each time.
        ("fox fox fox fox dog", "a fox, and nothing else at all", True),
        # No spaces, one word.
        ("敏捷的棕色狐狸跳过懒狗", "敏捷的棕色狐狸跳过懒狗。", False),
        ("", "", False),
    ],
)
def test_pairs_overlap_by_the_papers_rule(text: str, partner: str, expected: bool) -> None:
    assert overlaps(text, partner) is expected
    kept = keep_unlike([text, "what is a fox"], [partner, "an animal"])
    assert kept == ([1] if expected else [0, 1])


def test_texts_that_are_equal_after_normalisation_are_kept_once() -> None:
    texts = ["The fox sleeps.", "the  FOX sleeps.", "Ｔhe fox sleeps.", "The dog sleeps."]
    assert keep_distinct(texts) == [0, 3]
    assert normalise("ﬁne\u00a0 Cafe\u0301") == normalise("FINE CAFÉ")


def jaccard(one: str, two: str) -> float:
    a, b = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (one, two))
    return len(a & b) / len(a | b)


def test_near_duplicates_are_found_and_nothing_else_is_dropped(rng: np.random.Generator) -> None:
    alphabet = list("abcdefghijklmnopqrstuvwxyz      ")
    originals = [normalise("".join(rng.choice(alphabet, 200))) for _ in range(100)]
    copies = []
    for i, text in enumerate(originals):
        letters = list(text)
        for place in rng.choice(len(letters), 1 + i % 12, replace=False):
            letters[place] = "ß"
        copies.append(normalise("".join(letters)))
    kept = set(keep_distinct([*originals, *copies], likeness=0.8))
    assert kept >= set(range(100))
    near = [i for i, copy in enumerate(copies) if jaccard(originals[i], copy) >= 0.8]
    assert 20 < len(near) < 80
    assert {100 + i for i in range(100) if i not in near} <= kept
    assert sum(100 + i in kept for i in near) <= 0.02 * len(near)


def test_short_and_empty_texts_are_allowed() -> None:
    assert keep_distinct(["", "a", "ab", "", "A", "\ud800"]) == [0, 1, 2, 5]


def test_a_text_in_another_language_is_dropped() -> None:
    texts = [
        "The weather was terrible for the whole of last week.",
        "Das Wetter war die ganze letzte Woche furchtbar schlecht.",
        "Das Wetter war die ganze letzte Woche furchtbar schlecht.",
        "Погода была ужасной всю прошлую неделю.",
        "kurz",
        "上周的天气一直非常糟糕，所以我们没有出去散步。",
        "No identifier knows this language, so it stays.",
    ]
    langs = ["en", "de", "en", "en", "en", "zh-Hant", "tlh"]
    assert keep_languages(texts, langs) == [0, 1, 4, 5, 6]


def test_consistent_pairs_are_those_of_a_double_loop(rng: np.random.Generator) -> None:
    texts = rng.normal(size=(40, 6)).astype(np.float32)
    partners = texts + rng.normal(size=(40, 6)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    partners /= np.linalg.norm(partners, axis=1, keepdims=True)
    groups = rng.integers(25, size=40)
    for top in (1, 2, 5):
        expected = []
        for i in range(40):
            better = 0
            for j in range(40):
                if groups[i] != groups[j] and texts[i] @ partners[j] > texts[i] @ partners[i]:
                    better += 1
            if better < top:
                expected.append(i)
        assert keep_consistent(texts, partners, groups, top=top, block_size=7) == expected
        assert len(expected) < 40
