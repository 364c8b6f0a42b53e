"""A PDF is read in bounded time and memory whatever it holds, and its good pages are kept."""

import io
import os
import signal
import zlib

import pytest
from pypdf import PdfReader, PdfWriter

from polyvec.search.documents import read_document
from polyvec.search.readers import pdf_pages as module
from tests.search.made_files import assemble, pdf

SENTENCE = b"BT /F1 12 Tf 10 %d Td (the fox sleeps in den %d) Tj ET\n"


def shared_pages(num_pages, content, *, form=b""):
    """A PDF whose pages all show one packed content, which may draw one packed form."""

    def packed(data, more=b""):
        stream = zlib.compress(data)
        head = b"<< /Length %d /Filter /FlateDecode %s >>" % (len(stream), more)
        return head + b"\nstream\n" + stream + b"\nendstream"

    kids = b" ".join(b"%d 0 R" % (6 + number) for number in range(num_pages))
    resources = b"<< /Font << /F1 3 0 R >> /XObject << /Form 5 0 R >> >>"
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources %s >>"
    return assemble(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count %d /Kids [%s] >>" % (num_pages, kids),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            packed(content),
            packed(
                form, b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources " + resources
            ),
            *[page % resources] * num_pages,
        ]
    )


LINES = b"".join(SENTENCE % (7 * n, n) for n in range(100))


@pytest.mark.parametrize(
    "raw",
    [shared_pages(60, LINES), shared_pages(60, b"/Form Do\n", form=LINES)],
    ids=["content", "form"],
)
def test_pages_that_share_what_they_show_are_read_until_the_file_is_used_up(raw, monkeypatch):
    monkeypatch.setattr(module, "SPARE_CHARACTERS", 5_000)
    document = read_document(raw, "a.pdf")
    assert "fox sleeps" in document.text
    assert document.cut.startswith("only the pages before page ")
    assert len(document.starts) < 55


def test_pages_that_share_a_little_are_read_whole():
    document = read_document(shared_pages(30, SENTENCE % (10, 7)), "a.pdf")
    assert document.text.count("fox") == 30 and document.cut == ""
    assert document.locate(document.text.rindex("fox")) == 30


def test_a_file_that_takes_too_long_is_read_in_part_and_the_next_one_whole(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 2)
    slow = shared_pages(400, SENTENCE % (10, 7) + b" " * 30_000_000)
    document = read_document(slow, "a.pdf")
    assert "fox" in document.text
    assert "takes longer than 2 s" in document.cut
    monkeypatch.undo()
    assert "fox" in read_document(pdf("the fox"), "b.pdf").text


def test_a_reader_that_ends_is_started_again():
    assert "fox" in read_document(pdf("the fox"), "a.pdf").text
    process = module._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert "owl" in read_document(pdf("the owl"), "a.pdf").text
    assert module._process is not process


def test_the_pages_up_to_the_limit_are_read(monkeypatch):
    monkeypatch.setattr(module, "MAX_PAGES", 2)
    document = read_document(pdf("one", "two", "three"), "a.pdf")
    assert document.text.split() == ["one", "two"]
    assert document.cut == "only the first 2 pages are read"


def test_a_damaged_page_costs_no_other_page():
    raw = pdf("one", "two", "three").replace(b"/Kids [4 0 R 6 0 R", b"/Kids [4 0 R 3 0 R")
    document = read_document(raw, "a.pdf")
    assert "one" in document.text and "three" in document.text


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256"])
def test_a_file_that_only_its_owner_may_change_is_read(algorithm):
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("the fox sleeps"))))
    writer.encrypt("", "owner", algorithm=algorithm)
    packed = io.BytesIO()
    writer.write(packed)
    assert read_document(packed.getvalue(), "a.pdf").text.strip() == "the fox sleeps"
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("the fox sleeps"))))
    writer.encrypt("user", "owner", algorithm=algorithm)
    packed = io.BytesIO()
    writer.write(packed)
    with pytest.raises(ValueError, match="password"):
        read_document(packed.getvalue(), "a.pdf")


def test_words_are_whole_at_the_ends_of_lines():
    document = read_document(pdf("the sewer tun-\nnel is old\nand deep"), "a.pdf")
    assert "sewer tunnel is old" in " ".join(document.text.split())


def test_what_every_page_repeats_is_read_once():
    names = "abcdefgh"
    pages = [
        f"The Fox Manual\nabout {name}{name}{name}\nPage {n}" for n, name in enumerate(names, 1)
    ]
    document = read_document(pdf(*pages), "a.pdf")
    assert document.text.count("Manual") == 1 and document.text.count("Page") == 1
    assert document.locate(document.text.index("ccc")) == 3
