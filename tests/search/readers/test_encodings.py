"""Bytes become the text that a browser would show, or are refused."""

import pytest

from polyvec.search.documents import read_document
from polyvec.search.readers.encodings import decode, find_codecs

TEXTS = {
    "windows-1252": "Der Schlüssel hängt hinter der blauen Tür – für später. Voilà, ça marche été.",
    "windows-1251": "Запасной ключ висит за синей дверью сарая.",
    "koi8-r": "Запасной ключ висит за синей дверью сарая.",
    "shift_jis": "合鍵は物置の青いドアの後ろに掛かっています。",
    "euc-jp": "合鍵は物置の青いドアの後ろに掛かっています。",
    "gbk": "备用钥匙挂在棚子的蓝色门后面，请不要忘记。",
    "big5": "備用鑰匙掛在棚子的藍色門後面，請不要忘記。",
    "euc-kr": "여분의 열쇠는 헛간의 파란 문 뒤에 걸려 있다.",
}


@pytest.mark.parametrize("label", sorted(TEXTS))
@pytest.mark.parametrize("length", [1, 200])
def test_an_undeclared_encoding_is_guessed_and_said(label, length):
    text = f"{TEXTS[label]}\n" * length
    decoded = decode(text.encode(find_codecs(label)[0]))
    assert decoded.text == text
    assert "a guess" in decoded.note


@pytest.mark.parametrize("label", sorted(TEXTS))
def test_a_late_line_beyond_ascii_is_enough(label):
    text = "plain words\n" * 30_000 + TEXTS[label]
    assert decode(text.encode(find_codecs(label)[0])).text == text


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("latin1", "cp1252", "“5 €” – naïve"),
        ("ASCII", "cp1252", "“5 €”"),
        ("x-sjis", "cp932", "①髙橋 ㈱"),
        ("ms_kanji", "cp932", "№ ～"),
        ("x-euc-jp", "euc_jis_2004", "①番"),
        ("ks_c_5601-1987", "cp949", "똠방각하"),
        ("gb2312", "gb18030", "朱镕基 € 㐀"),
        ("big5", "big5hkscs", "香港嘅嘢"),
        ("iso-8859-9", "cp1254", "“ışık”"),
        ("iso-8859-11", "cp874", "กขค €"),
        ("csisolatin2", "iso8859_2", "Příliš žluťoučký"),
        ("cp866", "cp866", "Привет"),
        ("unicode-1-1-utf-8", "utf-8", "Füchse"),
        ("utf-16", "utf-8", "Füchse"),
    ],
)
def test_labels_have_the_meaning_of_the_encoding_standard(label, codec, text):
    for head in (
        f'<meta charset="{label}">',
        f"<META content='text/html; charset={label}' http-equiv=Content-Type>",
        f'<?xml version="1.0" encoding="{label}"?>',
    ):
        page = f"{head}<p>{text}</p>".encode(codec)
        document = read_document(page, "a.html")
        assert document.text.strip() == text
        assert document.note == ""


@pytest.mark.parametrize(
    "head",
    [
        '<!-- <meta charset="koi8-r"> -->',
        '<meta name="description" content="about charset=koi8-r">',
        '<meta name=charset content="koi8-r">',
        "<title>charset=koi8-r</title>",
    ],
)
def test_what_is_no_declaration_of_a_page_is_none(head):
    assert "Füchse" in read_document(f"{head}<p>Füchse".encode(), "a.html").text


def test_a_byte_order_mark_comes_before_a_declaration():
    page = '<meta charset="koi8-r"><p>Füchse 狐</p>'
    for codec, mark in (("utf-8", "\ufeff"), ("utf-16-le", "\ufeff"), ("utf-16-be", "\ufeff")):
        assert "Füchse 狐" in read_document((mark + page).encode(codec), "a.html").text
        assert decode((mark + "Füchse").encode(codec)).text == "Füchse"


def test_an_unknown_or_wrong_declaration_is_no_obstacle():
    assert "Füchse" in read_document('<meta charset="no-such">Füchse'.encode(), "a.html").text
    page = '<meta charset="utf-8"><p>Grüße aus München, schöne Füchse'.encode("cp1252")
    document = read_document(page, "a.html")
    assert "schöne Füchse" in document.text and "windows-1252" in document.note


def test_an_editors_cookie_is_a_declaration_and_other_words_are_not():
    source = "# -*- coding: cp1251 -*-\nname = 'Ёж'\n"
    assert decode_file(source.encode("cp1251"), "a.py") == source
    text = "encoding: latin1\nname: Füchse\n"
    assert decode_file(text.encode(), "a.yaml") == text


def decode_file(raw, name):
    return read_document(raw, name).text


def test_a_damaged_character_costs_nothing_but_itself():
    text = "Die Füchse schlafen. " * 50
    document = read_document(text.encode() + b"\xff the end", "a.txt")
    assert document.text == text + "\ufffd the end"
    assert document.note == "1 character is not utf-8, and read as U+FFFD"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x89PNG\r\n",
        b"\xff\xd8\xff\xe0abc",
        b"PK\x03\x04abc",
        b"a\0b",
        bytes(range(1, 32)) + bytes(range(128, 255)),
        b"\xff\xfe" + b"\0\0" * 9,
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.csv", "a.json", "a.xml"])
def test_bytes_that_are_no_text_are_refused(raw, name):
    with pytest.raises(ValueError, match="not text"):
        read_document(raw, name)
