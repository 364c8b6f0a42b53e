import pytest

from polyvec import Encoder
from polyvec.search.lexical import split_words, weigh_words


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
