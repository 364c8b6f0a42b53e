"""Packed files are unpacked within bounds, whatever they say of themselves."""

import gzip
import io
import zipfile

import pytest

from polyvec.search.documents import read_document
from polyvec.search.readers import archives
from tests.search.made_files import archive, open_document, word


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(archives, "SPARE_BYTES", 10_000)


def test_a_gzip_bomb_is_refused(small):
    raw = gzip.compress(b"a" * 10_000_000)
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_document(raw, "a.log.gz")
    nested = gzip.compress(gzip.compress(b"a" * 10_000_000))
    with pytest.raises(ValueError, match="not text"):
        read_document(nested, "a.txt.gz")


def test_a_log_that_repeats_itself_is_read():
    log = "".join(f"2026-01-01 00:00:00 host {n % 9} the fox sleeps\n" for n in range(50_000))
    assert read_document(gzip.compress(log.encode()), "a.log.gz").text == log


@pytest.mark.parametrize("end", range(0, 60, 5))
def test_a_damaged_gzip_file_says_so(end):
    raw = gzip.compress(b"the fox sleeps in its den")[:end]
    if end == 0:
        assert read_document(raw, "a.txt.gz").text == ""
        return
    try:
        assert read_document(raw, "a.txt.gz").text
    except ValueError as error:
        assert "gzip" in str(error)


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx", "a.odt", "a.epub"])
def test_a_zip_bomb_is_refused(small, name):
    bomb = archive({"word/document.xml": b" " * 10_000_000, "content.xml": b" " * 10_000_000})
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_document(bomb, name)


def test_a_lie_about_the_size_unpacks_no_more(small):
    raw = bytearray(open_document("<text:p>" + "fox " * 3_000_000 + "</text:p>"))
    real = zipfile.ZipFile(io.BytesIO(raw)).infolist()[0].file_size
    lie = bytes(raw).replace(real.to_bytes(4, "little"), (9_000).to_bytes(4, "little"))
    assert lie != raw
    with pytest.raises(ValueError, match="damaged"):
        read_document(lie, "a.odt")


@pytest.mark.parametrize("name", ["a.docx", "a.odt"])
def test_entities_that_grow_are_refused(name):
    entities = "<!ENTITY a 'lol'>" + "".join(
        f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9)
    )
    xml = f"<?xml version='1.0'?><!DOCTYPE x [{entities}]><x><p>&j;</p></x>"
    relation = "<R><Relationship Type='x/officeDocument' Target='content.xml'/></R>"
    with pytest.raises(ValueError, match="entity"):
        read_document(archive({"content.xml": xml, "_rels/.rels": relation}), name)


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx", "a.odt", "a.epub"])
def test_every_damage_to_a_packed_file_is_one_sentence(name):
    whole = word("<w:p><w:r><w:t>the fox</w:t></w:r></w:p>")
    cases = [whole[:end] for end in range(0, len(whole), 97)]
    cases += [whole[:at] + b"\xff" + whole[at + 1 :] for at in range(0, len(whole), 61)]
    cases += [b"\xd0\xcf\x11\xe0 encrypted", archive({}), archive({"content.xml": "<a><b></a>"})]
    for raw in cases:
        try:
            read_document(raw, name)
        except ValueError as error:
            assert len(str(error)) < 400
