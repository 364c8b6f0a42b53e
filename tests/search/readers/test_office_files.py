# ruff: noqa: E501
"""The text of Word, PowerPoint and OpenDocument files is found wherever these programs put it."""

import pytest

from polyvec.search.documents import read_document
from tests.search.made_files import open_document, paragraph, slides, word

STYLES = (
    '<w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>'
    '<w:style w:styleId="Eigene"><w:name w:val="Eigene"/><w:basedOn w:val="berschrift2"/></w:style>'
    '<w:style w:styleId="a"><w:name w:val="a"/><w:basedOn w:val="b"/></w:style>'
    '<w:style w:styleId="b"><w:name w:val="b"/><w:basedOn w:val="a"/></w:style>'
)


def lines(raw, name):
    return [line for line in read_document(raw, name).text.splitlines() if line.strip()]


def test_headings_are_known_by_the_names_of_their_styles_in_any_language():
    body = paragraph("Den", "berschrift2") + paragraph("Own", "Eigene") + paragraph("Text", "a")
    assert lines(word(body, styles=STYLES), "a.docx") == ["## Den", "## Own", "Text"]


def test_rows_of_tables_stand_on_one_line_and_paragraphs_are_numbered():
    cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("fox", "den"))
    body = paragraph("Before") + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>" + paragraph("After")
    document = read_document(word(body), "a.docx")
    assert lines(word(body), "a.docx") == ["Before", "fox\tden", "After"]
    assert document.locate(document.text.index("After")) == 3


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>", "new"),
        ("<w:sdt><w:sdtContent><w:p><w:r><w:t>control</w:t></w:r></w:p></w:sdtContent></w:sdt>", "control"),
        ("<w:p><w:hyperlink><w:r><w:t>link</w:t></w:r></w:hyperlink></w:p>", "link"),
        ("<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:noBreakHyphen/><w:t>c</w:t></w:r></w:p>", "a\tb-c"),
        ("<w:p><w:pPr><w:tabs><w:tab w:val='left'/></w:tabs></w:pPr><w:r><w:t>a</w:t></w:r></w:p>", "a"),
        (
            "<w:p><w:r><mc:AlternateContent><mc:Choice><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r>"
            "</w:p></w:txbxContent></mc:Choice><mc:Fallback><w:p><w:r><w:t>box</w:t></w:r></w:p>"
            "</mc:Fallback></mc:AlternateContent></w:r></w:p>",
            "box",
        ),
    ],
    ids=["tracked", "control", "link", "signs", "tabulator", "box"],
)  # fmt: skip
def test_text_is_read_in_every_place_once(body, text):
    assert lines(word(body), "a.docx") == [text]


def test_notes_comments_and_headers_follow_the_body():
    parts = {kind: paragraph(kind) for kind in ("header", "footnotes", "comments")}
    raw = word(paragraph("Body"), parts=parts)
    assert lines(raw, "a.docx") == ["Body", "footnotes", "comments", "header"]


def test_slides_are_read_in_the_order_in_which_they_are_shown():
    document = read_document(slides("one", "two", "three", notes=["a", "b", "c"]), "a.pptx")
    assert document.unit == "page"
    assert document.text.split() == ["one", "a", "two", "b", "three", "c"]
    assert [document.locate(document.text.index(word)) for word in ("one", "b", "three")] == [
        1,
        2,
        3,
    ]


def test_open_documents_have_headings_spans_notes_and_tables():
    body = (
        '<text:h text:outline-level="2">Den</text:h>'
        "<text:p>The <text:span>red</text:span>\n fox<text:line-break/>sleeps<text:note><text:p>Note"
        "</text:p></text:note></text:p><table:table-row><table:table-cell><text:p>a</text:p>"
        "</table:table-cell><table:table-cell><text:p>b</text:p></table:table-cell></table:table-row>"
        "<text:tracked-changes><text:p>gone</text:p></text:tracked-changes>"
    )
    assert sorted(lines(open_document(body), "a.odt")) == sorted(
        ["## Den", "Note", "The red  fox", "sleeps", "a\tb"]
    )
