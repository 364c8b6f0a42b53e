"""The chapters of EPUB books: a ZIP file of HTML pages, and a list of their order."""

import posixpath
from collections.abc import Iterator
from urllib.parse import unquote

from polyvec.search.readers.archives import Archive
from polyvec.search.readers.encodings import decode, html_label
from polyvec.search.readers.html_pages import html_pieces
from polyvec.search.readers.pieces import Piece
from polyvec.search.readers.xml_events import Attributes, parse_xml

CONTAINER = "META-INF/container.xml"

PAGES = (".xhtml", ".html", ".htm")

ABOUT = ("title", "creator", "description")
"""What is read of the description of the book."""


def book_pieces(raw: bytes) -> Iterator[Piece]:
    """Yield the number and the text of each chapter, in the order in which they are read."""
    archive = Archive(raw)
    try:
        about, chapters = _read_package(archive)
    except ValueError:
        # Its pages can be read without the list of them.
        about, chapters = "", []
    names = set(archive.names)
    chapters = [name for name in chapters if name in names]
    chapters = chapters or sorted(name for name in names if name.lower().endswith(PAGES))
    if not chapters:
        raise ValueError("it has no pages")
    for number, name in enumerate(chapters, 1):
        page = archive.read(name)
        pieces = html_pieces(decode(page, html_label(page)).text)
        text = "".join(piece for _, piece in pieces)
        if number == 1:
            text = about + text
        if text.strip():
            yield number, text.strip() + "\n\n"


def _read_package(archive: Archive) -> tuple[str, list[str]]:
    """What the package file says of the book, and the names of its chapters in their order."""
    path = ""
    pages: dict[str, str] = {}
    order: list[str] = []
    about: list[str] = []
    is_about = False

    def find_package(tag: str, attributes: Attributes) -> None:
        nonlocal path
        if tag == "rootfile":
            path = path or attributes.get("full-path", "")

    def start(tag: str, attributes: Attributes) -> None:
        nonlocal is_about
        is_about = tag in ABOUT
        if tag == "item":
            href = unquote(attributes.get("href", "")).partition("#")[0]
            place = posixpath.normpath(posixpath.join(posixpath.dirname(path), href))
            pages[attributes.get("id", "")] = place
        elif tag == "itemref":
            order.append(attributes.get("idref", ""))

    def end(tag: str) -> None:
        nonlocal is_about
        is_about = False

    def text(characters: str) -> None:
        if is_about and characters.strip():
            about.append(" ".join(characters.split()) + "\n")

    parse_xml(archive.read(CONTAINER), start=find_package)
    parse_xml(archive.read(path), start=start, end=end, text=text)
    # A list may name a page again and again.
    chapters = dict.fromkeys(pages[name] for name in order if name in pages)
    return "".join(about) + "\n", list(chapters)
