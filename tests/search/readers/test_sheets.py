"""Rows of spreadsheets are passages with the names of their columns."""

import datetime

from polyvec.search.documents import read_document
from tests.search.made_files import sheets


def parts(document):
    return [
        (document.locate(start), document.text[start:end].strip())
        for start, end in document.parts()
    ]


def test_rows_have_their_columns_names_and_their_numbers():
    day = datetime.datetime(2026, 1, 31)
    raw = sheets(
        One=[[], ["name", "born", "age"], ["fox", day, 3.0], [], ["owl", None, 2.5, "more"]]
    )
    assert parts(read_document(raw, "a.xlsx")) == [
        (3, "name: fox\nborn: 2026-01-31\nage: 3"),
        (5, "name: owl\nage: 2.5\nmore"),
    ]


def test_several_sheets_are_told_apart():
    raw = sheets(Foxes=[["name"], ["red"]], Owls=[["name"], ["barn"]], Empty=[])
    assert parts(read_document(raw, "a.xlsx")) == [(2, "Foxes\nname: red"), (2, "Owls\nname: barn")]


def test_a_row_alone_is_read_too():
    assert parts(read_document(sheets(One=[["just", "words"]]), "a.xlsx")) == [(1, "just\nwords")]


def test_rows_beyond_the_limit_are_left_out_with_a_word():
    raw = sheets(One=[["name"], *([f"fox {n}"] for n in range(20))])
    document = read_document(raw, "a.xlsx", max_rows=5)
    assert len(parts(document)) == 5
    assert document.cut == "only the first 5 rows are read; --max-rows reads more"
    assert read_document(raw, "a.xlsx", max_rows=20).cut == ""
