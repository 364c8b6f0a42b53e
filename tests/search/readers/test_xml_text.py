"""XML is split in linear time, and shows its text in whatever state it is."""

import time

import pytest

from polyvec.search.documents import read_document
from polyvec.search.readers.xml_text import TOKEN, xml_pieces


def lines(source):
    text = "".join(piece for _, piece in xml_pieces(source))
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("<a><b>one</b><b>two</b></a>", ["one", "two"]),
        ("<p>The <i>red</i> fox</p>\n<p>sleeps</p>", ["The red fox", "sleeps"]),
        ("<t><![CDATA[<b>kept & whole</b>]]></t>", ["<b>kept & whole</b>"]),
        ("<style>shown</style><nav>too</nav>", ["shown", "too"]),
        ("<o text='a note' id='x7'/><o title=\"an &amp;\"/>", ["a note", "an &"]),
        ("<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b; d</a>", ["&b; d"]),
        ("<a>one <b>never closed", ["one never closed"]),
        ("<!-- no --><ä:ö>Füchse</ä:ö>", ["Füchse"]),
    ],
)
def test_text_and_words_in_attributes_are_shown(source, shown):
    joined = " ".join(lines(source))
    assert " ".join(joined.split()) == " ".join(" ".join(shown).split())


def test_lines_are_those_of_the_source():
    document = read_document(b"<a>\n\n<b>one</b>\n<b>\n two</b></a>", "a.xml")
    assert [document.locate(document.text.index(word)) for word in ("one", "two")] == [3, 5]


UNITS = [
    *("<a b=c ", '<a b="', "<!--", "<![CDATA[", "<!DOCTYPE [", "<!DOCTYPE a [ ]   ", "<?x ", "</"),
    *("<a>", "<a title='x'>", "<a " + "b" * 50 + " ", "&lol;", "<", "]]>"),
]


@pytest.mark.parametrize("unit", UNITS)
def test_any_repetition_is_split_in_linear_time(unit):
    source = unit * (1_000_000 // len(unit))
    started = time.process_time()
    assert sum(match.end() - match.start() for match in TOKEN.finditer(source)) == len(source)
    assert sum(len(piece) for _, piece in xml_pieces(source)) <= 2 * len(source)
    assert time.process_time() - started < 10
