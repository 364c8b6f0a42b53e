"""Words at the ends of lines are whole, and lines that every page repeats are read once."""

import pytest

from polyvec.search.readers.page_lines import drop_furniture, join_words


def joined(text, elsewhere=""):
    pages = join_words([(1, text), (2, elsewhere)])
    return pages[0][1]


@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        ("the tun\ufffenel under", "the tunnel under"),
        ("the tun\ufffe\r\nnel under", "the tunnel under"),
        ("the tun-\r\n  nel under", "the tunnel under"),
        ("the tun\u00ad\nnel under", "the tunnel under"),
        ("Schlüs-\nsel", "Schlüssel"),
        ("INTER-\nNATIONAL", "INTERNATIONAL"),
        ("Jean-\nPierre", "Jean-Pierre"),
        ("COVID-\n19", "COVID-19"),
        ("a list -\nof words", "a list -\nof words"),
        ("a soft\u00adhyphen", "a softhyphen"),
    ],
)
def test_words_at_the_ends_of_lines_are_whole(cut, whole):
    assert joined(cut) == whole


def test_a_compound_keeps_the_hyphen_that_it_has_elsewhere():
    assert joined("a well-\nknown fox", "It is well-known.") == "a well-known fox"
    assert joined("a well-\nknown fox", "It is well-known, wellknown.") == "a wellknown fox"


def make_pages(count, header="The Fox Manual", footer="Page {} of 40"):
    return [
        (n, f"{header}\nwords of page {'abcdefghijklmnopqrstuvwxyz'[n]}\n{footer.format(n)}")
        for n in range(1, count + 1)
    ]


def test_headers_and_numbers_of_pages_are_read_once():
    text = "\n".join(text for _, text in drop_furniture(make_pages(9)))
    assert text.count("The Fox Manual") == 1 and text.count("of 40") == 1
    assert text.count("words of page") == 9


def test_left_and_right_pages_have_headers_of_their_own():
    pages = [(n, f"{'Left' if n % 2 else 'Right'} head\nwords {'abcdefghij'[n]}") for n in range(9)]
    text = "\n".join(text for _, text in drop_furniture(pages))
    assert text.count("head") == 2 and text.count("words") == 9


def test_rows_of_numbers_are_no_furniture():
    pages = [(n, f"{n * 7}.5 {n * n}.25\n{n + 100} {n * 3}") for n in range(1, 20)]
    assert list(drop_furniture(pages)) == pages


def test_no_page_is_left_without_text_and_short_documents_are_whole():
    assert list(drop_furniture([(n, "the same") for n in range(1, 9)])) == [
        (n, "the same") for n in range(1, 9)
    ]
    assert list(drop_furniture(make_pages(2))) == make_pages(2)
