import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyvec import Encoder
from polyvec.search.lexical import (
    find_codes,
    index_words,
    normalise,
    split_question,
    split_words,
    weigh_words,
)


@pytest.fixture(scope="module")
def bundled():
    return Encoder.load()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我们在温泉里", ["我们", "在", "温泉", "里"]),
        ("露天風呂に入る", ["露天風呂", "入る"]),
        ("แมวไม่ควรกินช็อกโกแลต", ["แมว", "ไม่", "ควร", "กิน", "ช็อกโกแลต"]),
        ("हिन्दी में योग", ["हिन्दी", "में", "योग"]),
        ("L'été, 3.14 & a Straße!", ["l'été", "straße"]),
        ("a \ud800 fox", ["fox"]),
        ("", []),
    ],
)
def test_words_are_told_apart_in_every_script(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("small", "telling"),
    [
        ("the", "bicycle"),
        ("und", "fahrrad"),
        ("de", "bicicleta"),
        ("на", "велосипед"),
        ("的", "猫"),
    ],
)
def test_a_word_that_is_rare_in_its_language_says_more(bundled, small, telling):
    said = weigh_words({small, telling}, bundled.tokenizer)
    assert said[telling] > 1.5 * said[small]


SPELLINGS = [
    ("사무실", "ko: syllables and jamo"),
    ("Київ", "uk: a letter with a diaeresis"),
    ("đường Việt", "vi: two marks on one letter"),
    ("ΑΘΉΝΑ ΚΌΣΜΟΣ", "el: capitals, accents and the final sigma"),
    ("ÅNGSTRÖM straße", "sharp s"),
    ("がんばる ﾊﾟﾝ", "ja: voicing marks, narrow katakana"),
    ("ﬁne Ⅷ ｆｏｘ", "ligatures, numerals, wide letters"),
    ("हिन्दी क़लम", "hi: nukta"),
]


@pytest.mark.parametrize("text", [text for text, _ in SPELLINGS])
def test_every_unicode_form_and_case_of_a_text_has_the_same_words(text):
    forms = {unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    forms |= {form.upper() for form in forms} | {form.lower() for form in forms}
    assert len({normalise(form) for form in forms}) == 1
    assert len({frozenset(index_words(form)) for form in forms}) == 1


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("السيّارة", "السيارة"),
        ("كـــتاب", "كتاب"),
        ("שָׁלוֹם", "שלום"),
        ("in\u00advis\u200bible\u2060", "invisible"),
        ("می\u200cخواهم", "میخواهم"),
        ("\u202bfox\u202c", "fox"),
        ("İSTANBUL", "istanbul"),
        ("✈\ufe0f", "✈"),
    ],
)
def test_marks_that_are_no_letters_and_invisible_characters_do_not_count(written, plain):
    assert normalise(written) == normalise(plain)


@pytest.mark.parametrize(
    ("one", "other"),
    [("мой", "мои"), ("かき", "かぎ"), ("คา", "ค่า"), ("कल", "कला"), ("คน", "คืน"), ("fox", "box")],
)
def test_marks_that_make_another_word_count(one, other):
    assert normalise(one) != normalise(other)


@given(st.text())
def test_normalising_twice_changes_nothing_and_forms_do_not_matter(text):
    once = normalise(text)
    assert normalise(once) == once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    ("question", "codes"),
    [
        ("what is ERR-4471?", ["err-4471"]),
        ("call sem_getvalue() now", ["sem_getvalue"]),
        ("the option --split-string", ["--split-string"]),
        ("edit /etc/DIR_COLORS.", ["/etc/dir_colors"]),
        ("什么是RX-20931的价格", ["rx-20931"]),
        ("invoice 20931", ["20931"]),
        ("the 20th century, 16GB, 5km, in 2024", []),
        ("a well-known and/or up-to-date word", []),
        ("Wie geht das?", []),
    ],
)
def test_codes_are_words_with_digits_or_signs_inside(question, codes):
    assert find_codes(question) == codes


@pytest.mark.parametrize(
    ("question", "phrases"),
    [
        ('find "Der Fuchs"', ["der fuchs"]),
        ("„Der Fuchs“ und «le renard»", ["der fuchs", "le renard"]),
        ("“one” “two  words”", ["one", "two words"]),
        ("don't split 'this'", []),
        ('an open "quote', []),
        ('""', []),
    ],
)
def test_phrases_stand_in_quotation_marks(question, phrases):
    plain, found = split_question(question)
    assert found == phrases
    assert not set('"“”„«»') & set(plain) or not phrases
