"""The work for a PDF is bounded by the size of the file."""

import zlib

import pytest

from polyvec.search import pdf_pages as module
from polyvec.search.documents import read_document
from polyvec.search.pdf_pages import ContentTooLarge, pdf_pages

SENTENCE = b"BT /F1 12 Tf 10 10 Td (the fox sleeps) Tj ET\n"


def pdf(num_pages, content, *, form=b""):
    """A PDF whose pages all show one packed content, which may draw one packed form."""

    def packed(data, more=b""):
        stream = zlib.compress(data)
        head = b"<< /Length %d /Filter /FlateDecode %s >>" % (len(stream), more)
        return head + b"\nstream\n" + stream + b"\nendstream"

    kids = b" ".join(b"%d 0 R" % (6 + number) for number in range(num_pages))
    resources = b"<< /Font << /F1 3 0 R >> /XObject << /Form 5 0 R >> >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>" % (num_pages, kids),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        packed(content),
        packed(form, b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources " + resources),
        *[
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources "
            + resources
            + b" >>"
        ]
        * num_pages,
    ]
    body, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, text)
    rows = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n" % size + rows
    return (
        body
        + table
        + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (
            size,
            len(body),
        )
    )


@pytest.mark.parametrize(
    "raw",
    [
        pdf(60, SENTENCE * 100),
        pdf(60, b"/Form Do\n" * 5, form=SENTENCE * 100),
        pdf(3, b" " * 90_000),
    ],
    ids=["content", "form", "nothing shown"],
)
def test_pages_that_share_what_they_show_are_read_until_the_file_is_used_up(raw, monkeypatch):
    monkeypatch.setattr(module, "SPARE_BYTES", 30_000)
    pages = []
    with pytest.raises(ContentTooLarge, match=r"only the pages before page \d+ are read"):
        for page in pdf_pages(raw):
            pages.append(page)
    assert len(pages) < 55
    assert all("fox sleeps" in text for _, text in pages)


def test_the_pages_that_were_read_are_the_document_and_the_rest_has_a_reason(monkeypatch):
    monkeypatch.setattr(module, "SPARE_BYTES", 30_000)
    document = read_document(pdf(60, SENTENCE * 100), "a.pdf")
    assert document.text.startswith("the fox sleeps")
    assert "only the pages before page" in document.cut


def test_pages_that_share_a_little_are_read_whole():
    document = read_document(pdf(30, SENTENCE), "a.pdf")
    assert document.text.count("fox") == 30 and document.cut == ""
    assert document.locate(len(document.text) - 1) == 30
