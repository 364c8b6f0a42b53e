"""HTML is split in linear time, as the HTML standard says, and whatever it contains."""

import time

import pytest

from polyvec.search.readers.html_pages import TOKEN, html_pieces


def shown(source):
    return " ".join("".join(piece for _, piece in html_pieces(source)).split())


UNITS = [
    *("<a b=c ", "<a/", '<a b="', "<a b='>", "<!--", "<!-- >", "<![CDATA[", "<?x ", "</"),
    *("<script>", "<script/", "<style><!--", "<svg></nav>", "<pre>", "<title>", "</p>\n", "<"),
    *("&", "&#9", "&#x", "&lt<", "a < b > c ", "= <a = ="),
]


@pytest.mark.parametrize("unit", UNITS)
def test_any_repetition_is_split_in_linear_time(unit):
    source = unit * (1_000_000 // len(unit))
    started = time.process_time()
    length = sum(match.end() - match.start() for match in TOKEN.finditer(source))
    assert length == len(source)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("unit", UNITS)
def test_pieces_have_ascending_lines_and_are_about_as_long_as_the_page(unit):
    source = unit * 200
    pieces = list(html_pieces(source))
    lines = [line for line, _ in pieces]
    assert lines == sorted(lines)
    assert all(1 <= line <= source.count("\n") + 1 for line in lines)
    # A block adds a few line breaks, and a heading a few marks.
    assert sum(len(piece) for _, piece in pieces) <= 2 * len(source)


def test_elements_that_are_nested_deeply_take_linear_time():
    deep = "<svg>" * 50_000 + "<iframe/><nav>" * 50_000
    started = time.process_time()
    assert shown(deep + "</p></select>" * 50_000 + "</svg>" * 50_000 + "the end") == "the end"
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<!-- a --> b <!--> c <!-- d --!> e", "b c e"),
        ("a <!-- never closed <p>b</p>", "a"),
        ("a <p title='1 > 2'>b</p> <p title=\"<!--\">c", "a b c"),
        ("<p it's>a</p> it's", "a it's"),
        ("a <b never closed", "a"),
        ("a <script>if (a < b) '</p>'</script >b", "a b"),
        ("a <SCRIPT>never closed", "a"),
        ("a <script src='b'/>c", "a c"),
        ("a <textarea><p>b</textarea>c", "a c"),
        ("a <svg/>b <svg><text>c</text></svg>d", "a b d"),
        ("1 < 2 <3", "1 < 2 <3"),
        ("<?xml version='1.0'?><!DOCTYPE html><![CDATA[a]]>b", "b"),
        ("&lt;p&gt; &amp;&nbsp;&#246; &#x6F22; &unknown;", "<p> & ö 漢 &unknown;"),
        ("&#" + "9" * 5_000 + "; &#x" + "f" * 5_000 + "; b", "\ufffd \ufffd b"),
    ],
)
def test_pages_are_read_as_browsers_read_them(source, text):
    assert shown(source) == text
