"""A folder with one file of every kind, each of which answers its own question."""

import sys

import pytest

from polyvec.search import Index
from polyvec.search.documents import KINDS, find_kind
from tests.search.made_files import every_kind


def secret(name):
    """A word that stands in one file only, in letters alone."""
    return "zq" + "".join(chr(97 + ord(letter) % 26) for letter in name)


FILES = every_kind(lambda name: f"The spare key of {secret(name)} hangs behind the blue door.")


@pytest.fixture(scope="module")
def index(searcher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    for name, contents in FILES.items():
        (folder / name).write_bytes(contents)
    index = Index(folder, searcher)
    index.first = index.update()
    return index


def test_all_files_are_read_without_a_word(index):
    assert index.first.skipped == [] and index.first.notes == []
    assert sorted(index.first.changed) == sorted(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_of_each_kind_is_found_by_its_question(index, name):
    hits = index.search(f"where is the key of {secret(name)}", weights={"dense": 0.0}, top=1)
    assert [hit.path for hit in hits] == [name]
    assert hits[0].line == 1 or hits[0].page == 1 or name in ("a.csv", "a.xlsx", "a.srt", "a.vtt")


def test_the_files_cover_the_readers_of_all_kinds():
    readers = {kind.read for kind in KINDS.values()}
    tried = {kind.read for name in FILES if (kind := find_kind(name)) is not None}
    # Tables of rows differ only in their suffix.
    assert {getattr(read, "func", read) for read in readers} == {
        getattr(read, "func", read) for read in tried
    }


def test_a_missing_extra_is_one_note_with_the_number_of_files(notes, searcher, monkeypatch):
    for name in ("a.xlsx", "b.xlsx"):
        (notes / name).write_bytes(FILES["a.xlsx"])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    update = Index(notes, searcher).update()
    assert update.notes == ["2 files need openpyxl: pip install 'polyvec[documents]'"]
    assert update.skipped == [] and update.files == 2
