import json

import pytest

from polyvec.search import pdf_pages
from polyvec.search.documents import read_document


def pdf(*pages):
    """A PDF of pages with a line of text each, as small as can be."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    body, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n".encode()
    rows = "".join(f"{place:010} 00000 n \n" for place in places)
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{rows}"
    end = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return body + (table + end).encode()


def places(document):
    """Every part's text, and the line or page it begins on."""
    parts = [document.text[start:end] for start, end in document.parts()]
    starts = [start for start, _ in document.parts()]
    return [
        (document.locate(start), text.strip()) for start, text in zip(starts, parts, strict=True)
    ]


def where(document, words):
    return document.locate(document.text.index(words))


@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.py", "A.RST"])
def test_the_text_of_plain_files_is_their_own_and_lines_are_counted(name):
    text = "# One\n\ntwo three\r\nfour 狐狸\n"
    document = read_document(text.encode(), name)
    assert document.text == text
    assert [where(document, word) for word in ("One", "two", "three", "狐狸")] == [1, 3, 3, 4]
    assert document.is_markdown == name.endswith(".md")
    assert list(document.parts()) == [(0, len(text))]


def test_html_keeps_what_is_shown_with_headings_and_source_lines():
    source = """<!doctype html>
<html><head><title>Foxes &amp; dens</title>
<style>p { color: red }</style><script>var hidden = "<p>no</p>";</script></head>
<body><nav><a href="/">Home</a></nav>
<h1>The <em>red</em> fox</h1>
<p>It   sleeps
in its den.<br>And <b>wakes</b>.
<h2>Food</h2><ul><li>mice<li>berries</ul>
<pre>  kept
    as is</pre>
</body></html>"""
    document = read_document(source.encode(), "a.html")
    assert document.is_markdown
    lines = [line.strip() for line in document.text.splitlines() if line.strip()]
    assert lines == [
        "# Foxes & dens",
        "# The red fox",
        "It sleeps in its den.",
        "And wakes.",
        "## Food",
        "mice",
        "berries",
        "kept",
        "as is",
    ]
    words = ["# Foxes", "# The", "red fox", "It sleeps", "wakes", "## Food", "berries", "kept"]
    assert [where(document, word) for word in words] == [2, 5, 5, 6, 7, 8, 8, 9]


def test_html_is_read_in_the_encoding_that_it_names():
    page = '<meta charset="{}"><p>Füchse</p>'
    assert "Füchse" in read_document(page.format("latin-1").encode("latin-1"), "a.htm").text
    assert "Füchse" in read_document(page.format("UTF-8").encode(), "a.htm").text
    with pytest.raises(ValueError, match="no-such"):
        read_document(page.format("no-such").encode(), "a.htm")


@pytest.mark.parametrize("source", ["<![foo", "<p>a<![CDATA[b", "<script>", "", "</p></nav>x<"])
def test_broken_html_gives_a_text_or_a_reason(source):
    try:
        read_document(source.encode(), "a.html")
    except ValueError as error:
        assert "HTML" in str(error)


def test_pages_of_a_pdf_are_parts_with_their_numbers():
    document = read_document(pdf("The fox sleeps.", "Its den is warm."), "a.pdf")
    assert document.unit == "page"
    assert places(document) == [(1, "The fox sleeps."), (2, "Its den is warm.")]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not a valid PDF"),
        (b"%PDF-1.4 nothing", "not a valid PDF"),
        (pdf("fox").replace(b"/Kids [4 0 R]", b"/Kids [9 0 R]"), "PDF|text"),
        (pdf("fox")[:300], "PDF|text"),
        (pdf(""), "no text"),
        (pdf(*"abc"), "more than 2 pages"),
    ],
)
def test_a_pdf_that_cannot_be_read_says_why(raw, reason, monkeypatch):
    monkeypatch.setattr(pdf_pages, "MAX_PAGES", 2)
    with pytest.raises(ValueError, match=reason):
        read_document(raw, "a.pdf")


def test_every_cut_of_a_pdf_is_read_or_refused_in_a_sentence():
    whole = pdf("The fox sleeps.")
    for end in range(0, len(whole), 7):
        try:
            read_document(whole[:end], "a.pdf")
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(("name", "sign"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_rows_are_parts_that_name_their_columns(name, sign):
    rows = [
        ["name", "food", "text"],
        ["fox", '"mice\nand hens"', "red"],
        ["", "", ""],
        ["owl", "", ""],
    ]
    source = "\n".join(sign.join(row) for row in rows) + "\n"
    document = read_document(source.encode(), name)
    assert places(document) == [(2, "name: fox\nfood: mice\nand hens\nred"), (5, "name: owl")]


def test_json_lines_are_parts_with_their_lines():
    rows = ["fox", {"text": "owl", "id": 7, "tags": ["a", "ß"], "none": None}, {"x": "\ud800"}]
    source = json.dumps(rows[0]) + "\n\n" + "\n".join(json.dumps(row) for row in rows[1:])
    document = read_document(source.encode(), "a.jsonl")
    assert places(document) == [
        (1, "fox"),
        (3, 'owl\nid: 7\ntags: ["a", "ß"]'),
        (4, "x: \ufffd"),
    ]
    with pytest.raises(ValueError, match="line 2"):
        read_document(b'"a"\n{"b": \n', "a.jsonl")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.html", "a.txt"])
def test_an_empty_file_has_an_empty_text(name):
    assert read_document(b"", name).text.strip() == ""


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.html", "a.py"])
@pytest.mark.parametrize("raw", [b"\x89PNG\xff\xfe", b"a\0b"])
def test_what_is_not_text_says_so(name, raw):
    with pytest.raises(ValueError, match="not text"):
        read_document(raw, name)


def test_rows_longer_and_shorter_than_the_header_are_searched_too():
    document = read_document(b"name,food\nfox,mice,red\nowl\n", "a.csv")
    assert places(document) == [(2, "name: fox\nfood: mice\nred"), (3, "name: owl")]
