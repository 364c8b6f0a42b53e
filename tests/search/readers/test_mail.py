"""Messages are read as people see them."""

import time

import pytest

from polyvec.search.documents import read_document
from polyvec.search.readers import mail
from tests.search.made_files import message

NESTED = b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n'


def shown(raw, name="a.eml"):
    return " ".join(read_document(raw, name).text.split())


def test_headers_text_and_names_of_attachments_are_read():
    raw = message("The key hängt links.", subject="Grüße aus Köln", attachment="plan.png")
    text = shown(raw)
    for words in ("Subject: Grüße aus Köln", "Ann <ann@example.org>", "hängt", "plan.png"):
        assert words in text
    assert "PNG" not in text.replace("plan.png", "")


def test_a_page_is_read_only_if_there_is_no_plain_text():
    both = message("plain words", page="<p>shown <b>words</b></p>")
    assert "plain words" in shown(both) and "shown" not in shown(both)
    page = b"Subject: x\nContent-Type: text/html; charset=iso-8859-1\n\n<p>F\xfcchse&amp;mehr"
    assert "Füchse&mehr" in shown(page)


@pytest.mark.parametrize(
    ("charset", "codec", "text"),
    [("gb2312", "gb18030", "朱镕基"), ("ISO-8859-1", "cp1252", "“5 €”"), ("x", "utf-8", "Füchse")],
)
def test_charsets_are_those_of_the_encoding_standard(charset, codec, text):
    raw = f"Subject: x\nContent-Type: text/plain; charset={charset}\n\n".encode()
    assert text in shown(raw + text.encode(codec))


def test_messages_of_a_mailbox_are_parts_with_their_lines():
    first = b"From a@b Mon\nSubject: One\n\n>From here on.\n\n"
    document = read_document(first + b"From c@d Tue\nSubject: Two\n\nbye\n", "a.mbox")
    parts = [document.text[start:end].split() for start, end in document.parts()]
    assert [document.locate(start) for start, _ in document.parts()] == [1, 6]
    assert parts[0] == "Subject: One From here on.".split() and parts[1][1] == "Two"
    with pytest.raises(ValueError, match="not a mailbox"):
        read_document(b"just words\n", "a.mbox")


def test_a_message_that_cannot_be_read_costs_no_other_message(monkeypatch):
    monkeypatch.setattr(mail, "MAX_COMPARISONS", 20)
    parts = b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' * 9
    raw = b"From a\nSubject: One\n\nx\n\nFrom b\n" + parts + b"\n\nFrom c\nSubject: Three\n\ny\n"
    document = read_document(raw, "a.mbox")
    assert "One" in document.text and "Three" in document.text
    assert document.cut == "the message in line 6 is not read, since it has too many parts"


@pytest.mark.parametrize(
    "raw",
    [
        b"Subject: " + b"=?utf-8?q?" * 50_000 + b"\n\nx",
        b"Subject: " + b'"(<' * 100_000 + b"\n\nx",
        b"".join(NESTED % (n, n) for n in range(9_000)),
        b"Content-Type: message/rfc822\n\n" * 9_000,
        b"Content-Type: text/plain; charset*0=a; charset*1=b\n\nx",
        b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n!!!\xff",
    ],
    ids=["words", "signs", "nested parts", "nested messages", "parameters", "base64"],
)  # fmt: skip
def test_odd_messages_take_little_time(raw):
    started = time.process_time()
    try:
        shown(raw)
    except ValueError as error:
        assert "parts" in str(error)
    assert time.process_time() - started < 10
