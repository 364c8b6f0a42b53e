"""Small files of many kinds, made as the programs make them that people use."""

import gzip
import io
import json
import zipfile
from email.message import EmailMessage
from html import escape

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
SLIDES = "http://schemas.openxmlformats.org/presentationml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def archive(members):
    """A ZIP file of texts or bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


def relations(*targets):
    """A list of relations, each of which is an identifier, a kind and a target."""
    items = "".join(
        f'<Relationship Id="{name}" Type="{RELATIONS}/{kind}" Target="{target}"/>'
        for name, kind, target in targets
    )
    return f'<?xml version="1.0"?><Relationships xmlns="{PACKAGE}">{items}</Relationships>'


def word(body, *, styles="", parts=None):
    """A Word document with this body; `parts` are further parts by their kinds."""
    parts = parts or {}
    names = f'xmlns:w="{WORD}" xmlns:mc="x"'
    document = f"<w:document {names}><w:body>{body}</w:body></w:document>"
    links = [(f"r{kind}", kind, f"{kind}.xml") for kind in parts]
    if styles:
        links.append(("rs", "styles", "styles.xml"))
    members = {
        "_rels/.rels": relations(("r1", "officeDocument", "word/document.xml")),
        "word/document.xml": document,
        "word/_rels/document.xml.rels": relations(*links),
        "word/styles.xml": f'<w:styles xmlns:w="{WORD}">{styles}</w:styles>',
    }
    for kind, text in parts.items():
        members[f"word/{kind}.xml"] = f'<w:{kind} xmlns:w="{WORD}">{text}</w:{kind}>'
    return archive(members)


def paragraph(text, style=""):
    """A paragraph of a Word document."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def slides(*texts, notes=None):
    """A PowerPoint file. The files of the slides are numbered against the order of the slides."""
    count = len(texts)
    ids = "".join(f'<p:sldId id="{256 + n}" r:id="r{n}"/>' for n in range(count))
    head = f'xmlns:p="{SLIDES}" xmlns:a="{DRAWING}" xmlns:r="{RELATIONS}"'
    members = {
        "_rels/.rels": relations(("r1", "officeDocument", "ppt/presentation.xml")),
        "ppt/presentation.xml": f"<p:presentation {head}>{ids}</p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            *((f"r{n}", "slide", f"slides/slide{count - n}.xml") for n in range(count))
        ),
    }
    for n, text in enumerate(texts):
        shapes = f"<a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p>"
        members[f"ppt/slides/slide{count - n}.xml"] = f"<p:sld {head}>{shapes}</p:sld>"
        if notes:
            name = f"ppt/slides/_rels/slide{count - n}.xml.rels"
            members[name] = relations(("n", "notesSlide", f"../notesSlides/notes{n}.xml"))
            shown = f"<p:notes {head}><a:p><a:r><a:t>{notes[n]}</a:t></a:r></a:p></p:notes>"
            members[f"ppt/notesSlides/notes{n}.xml"] = shown
    return archive(members)


def open_document(body):
    """An OpenDocument text."""
    names = 'xmlns:office="o" xmlns:text="t" xmlns:table="b"'
    content = f"<office:document-content {names}><office:text>{body}</office:text>"
    return archive({"content.xml": content + "</office:document-content>"})


def book(*chapters, title="A book"):
    """An EPUB whose pages are listed against the order of their names."""
    names = [f"c{len(chapters) - n}.xhtml" for n in range(len(chapters))]
    items = "".join(f'<item id="{name}" href="text/{name}"/>' for name in names)
    order = "".join(f'<itemref idref="{name}"/>' for name in names)
    package = (
        f'<package xmlns="opf"><metadata xmlns:dc="dc"><dc:title>{title}</dc:title></metadata>'
        f"<manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    container = '<container><rootfiles><rootfile full-path="OPS/b.opf"/></rootfiles></container>'
    members = {"META-INF/container.xml": container, "OPS/b.opf": package}
    pages = (f"<html><body>{chapter}</body></html>" for chapter in chapters)
    members |= {f"OPS/text/{name}": page for name, page in zip(names, pages, strict=True)}
    return archive(members)


def sheets(**tables):
    """An Excel file with a sheet for each list of rows."""
    import openpyxl

    workbook = openpyxl.Workbook()
    workbook.remove(workbook.worksheets[0])
    for title, rows in tables.items():
        sheet = workbook.create_sheet(title)
        for row in rows:
            sheet.append(row)
    packed = io.BytesIO()
    workbook.save(packed)
    return packed.getvalue()


def message(text, *, subject="Hello", page="", attachment=""):
    """An e-mail."""
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = subject, "Ann <ann@example.org>", "bob@example.org"
    mail.set_content(text)
    if page:
        mail.add_alternative(page, subtype="html")
    if attachment:
        mail.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename=attachment)
    return mail.as_bytes()


def pdf(*pages):
    """A PDF of pages with lines of text each, as small as can be."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, text in enumerate(pages):
        lines = " ".join(f"({line}) Tj 0 -16 Td" for line in text.split("\n"))
        stream = f"BT /F1 12 Tf 72 720 Td {lines} ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    return assemble([text.encode() for text in objects])


def assemble(objects):
    """A PDF of these objects, the first of which is its catalog."""
    body, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, text)
    rows = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, rows)
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(body))
    return body + table + end


def notebook(*cells):
    """A Jupyter notebook of cells, each of which is a kind and a text."""
    items = [{"cell_type": kind, "source": text.splitlines(True)} for kind, text in cells]
    return json.dumps({"cells": items, "nbformat": 4}).encode()


def every_kind(words):
    """The name and the contents of one file of each kind; `words` gives the text of each name."""
    lines = {
        name: words(name).encode()
        for name in (
            "a.txt a.md a.mdx a.rst a.org a.log a.py README LICENSE Makefile Dockerfile README.de "
            "Makefile.am justanote a.html"
        ).split()
    }
    return lines | {
        "a.docx": word(paragraph(words("a.docx"))),
        "a.pptx": slides(words("a.pptx")),
        "a.xlsx": sheets(One=[["name", "note"], ["x", words("a.xlsx")]]),
        "a.odt": open_document(f"<text:p>{words('a.odt')}</text:p>"),
        "a.epub": book(f"<p>{words('a.epub')}</p>"),
        "a.ipynb": notebook(("markdown", words("a.ipynb"))),
        "a.eml": message(words("a.eml")),
        "a.mbox": b"From a@b Mon Jan  1 00:00:00 2026\n" + message(words("a.mbox")),
        "a.json": json.dumps({"note": words("a.json")}).encode(),
        "a.xml": f"<notes><note>{words('a.xml')}</note></notes>".encode(),
        "a.srt": f"1\n00:00:01,000 --> 00:00:02,000\n{words('a.srt')}\n".encode(),
        "a.vtt": f"WEBVTT\n\n00:01.000 --> 00:02.000\n{words('a.vtt')}\n".encode(),
        "a.csv": f"id,note\n1,{words('a.csv')}\n".encode(),
        "a.jsonl": json.dumps({"note": words("a.jsonl")}).encode() + b"\n",
        "a.pdf": pdf(words("a.pdf")),
        "old.log.gz": gzip.compress(words("old.log.gz").encode()),
        "a.pdf.gz": gzip.compress(pdf(words("a.pdf.gz"))),
        "a.docx.gz": gzip.compress(word(paragraph(words("a.docx.gz")))),
    }
