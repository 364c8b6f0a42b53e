import re

import pytest

from polyvec.search.snippets import SNIPPET_LINES, find_words, show_snippet, wrap_lines

TEXT = """The ferry leaves at nine. It takes cars and bicycles.

Tickets are sold on board.
The café opens at ten, and the captain's dog greets everybody who comes on board in the morning.
Nothing else happens.
"""


@pytest.mark.parametrize("width", [1, 7, 20, 80])
def test_lines_fit_their_width_and_together_hold_every_word(width):
    lines = list(wrap_lines(TEXT, width))
    assert all(0 < end - start <= width for start, end in lines)
    joined = "".join(TEXT[start:end] for start, end in lines)
    assert re.sub(r"\s", "", joined) == re.sub(r"\s", "", TEXT)


def test_wide_characters_take_two_columns():
    assert [end - start for start, end in wrap_lines("養貓日記養貓日記", 8)] == [4, 4]


def test_a_snippet_is_the_lines_around_its_sentence():
    start = TEXT.index("Nothing")
    lines = show_snippet(TEXT, (start, len(TEXT)), (), width=60, is_coloured=False)
    assert len(lines) == SNIPPET_LINES
    assert lines[-1] == "Nothing else happens."
    assert show_snippet("fox", None, ["dog"], width=60, is_coloured=False) == ["fox"]
    assert show_snippet("", None, [], width=60, is_coloured=False) == []


def test_without_a_sentence_a_snippet_is_the_lines_around_the_first_word():
    lines = show_snippet(TEXT, None, ["captain"], width=60, is_coloured=False)
    assert "captain" in "".join(lines)


def test_colours_mark_the_sentence_and_its_words_and_change_no_text():
    start, end = TEXT.index("Tickets"), TEXT.index("board.") + 6
    plain = show_snippet(TEXT, (start, end), ["sold"], width=40, is_coloured=False)
    marked = show_snippet(TEXT, (start, end), ["sold"], width=40, is_coloured=True)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in marked] == plain
    line = next(line for line in marked if "sold" in line)
    assert "\x1b[32m\x1b[1msold\x1b[0m" in line
    assert line.startswith("\x1b[32mTickets are ")


def test_a_text_steers_no_terminal():
    assert show_snippet("a \x1b[2J fox", None, ["fox"], width=60, is_coloured=True) == [
        "a \\x1b[2J \x1b[1mfox\x1b[0m"
    ]


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [
        ("Ein Cafe\u0301 am See", "cafe", ["Cafe\u0301"]),
        ("the CAFÉ, cafés", "cafe", ["CAFÉ"]),
        ("我们在温泉里", "温泉", ["温泉"]),
        ("우리는 여우를 보았다", "여우", ["여우"]),
        ("foxes", "fox", []),
        ("in\u00advisible", "invisible", ["in\u00advisible"]),
    ],
)
def test_words_are_found_in_the_form_in_which_they_are_compared(text, word, found):
    assert [text[start:end] for start, end in find_words(text, [word])] == found
