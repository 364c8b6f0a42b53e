"""Chapters of books are read in their order."""

from polyvec.search.documents import read_document
from tests.search.made_files import archive, book


def test_chapters_follow_the_order_of_the_book_and_not_of_their_names():
    document = read_document(book("<h1>One</h1>fox", "<p>two", "three", title="Dens"), "a.epub")
    assert document.text.split() == ["Dens", "#", "One", "fox", "two", "three"]
    assert document.locate(document.text.index("three")) == 3


def test_a_book_without_a_list_is_read_in_the_order_of_names():
    raw = archive({"b.html": "second", "a.html": "first", "META-INF/container.xml": "<broken"})
    assert read_document(raw, "a.epub").text.split() == ["first", "second"]
