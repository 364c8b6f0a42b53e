"""Documents and slides of Word, PowerPoint and OpenDocument: ZIP files of XML.

The text is read in one pass over the XML, in the order in which it is written. This also finds what
libraries for editing such files leave out: text boxes, tracked insertions, footnotes, comments,
diagrams and the notes of slides. Text that was deleted under tracking is not read. Headings become
Markdown's, and the cells of a table's row stand on one line.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from polyvec.search.readers.archives import Archive
from polyvec.search.readers.pieces import Piece
from polyvec.search.readers.xml_events import Attributes, parse_xml


class Dialect(NamedTuple):
    """The local names of the elements that hold text."""

    paragraphs: frozenset[str]
    texts: frozenset[str]
    """Elements whose characters are text."""

    row: str
    cell: str
    hidden: frozenset[str]
    """Elements that show nothing, or something that stands elsewhere too."""


OFFICE = Dialect(
    frozenset({"p"}), frozenset({"t"}), "tr", "tc", frozenset({"Fallback", "moveFrom", "fld"})
)
"""Word and PowerPoint. `Fallback` repeats a text box for old programs, and `fld` is the number
or the date of a slide."""

OPEN_DOCUMENT = Dialect(
    frozenset({"p", "h"}),
    frozenset({"p", "h"}),
    "table-row",
    "table-cell",
    frozenset({"tracked-changes", "creator", "date"}),
)

BREAKS = {"br": "\n", "cr": "\n", "line-break": "\n", "noBreakHyphen": "-", "s": " "}
"""Empty elements that stand for characters."""

WORD_PARTS = ("footnotes", "endnotes", "comments", "header", "footer")
"""The parts of a Word document that are read after its body."""

SLIDE_PARTS = ("diagramData", "notesSlide", "comments")

MAX_LEVEL = 6
"""Markdown has six levels of headings."""

HEADING_STYLE = re.compile(r"(?:heading|title)(?: (\d))?", re.IGNORECASE)
"""The names of styles are English in every language; their identifiers are not."""


def word_pieces(raw: bytes) -> Iterator[Piece]:
    """Yield the paragraphs of a Word document, with their numbers."""
    archive = Archive(raw)
    main = _main_part(archive)
    styles = [*_related(archive, main, ("styles",))]
    levels = _style_levels(archive.read(styles[0])) if styles else {}
    number = 0
    for part in (main, *_related(archive, main, WORD_PARTS)):
        for text in _read_paragraphs(archive.read(part), OFFICE, levels):
            number += 1
            yield number, text


def slide_pieces(raw: bytes) -> Iterator[Piece]:
    """Yield the number and the text of each slide with its notes, as they are shown."""
    archive = Archive(raw)
    main = _main_part(archive)
    targets = dict(_relations(archive, main))
    order: list[str] = []

    def start(tag: str, attributes: Attributes) -> None:
        # It has an `id` of its own beside the one of the relation, whose prefix is any.
        if tag == "sldId":
            slides = [targets[value][1] for value in attributes.values() if value in targets]
            order.extend(slides[:1])

    parse_xml(archive.read(main), start=start)
    for number, slide in enumerate(order, 1):
        parts = (slide, *_related(archive, slide, SLIDE_PARTS))
        texts = [text for part in parts for text in _read_paragraphs(archive.read(part), OFFICE)]
        if texts:
            yield number, "".join(texts)


def open_document_pieces(raw: bytes) -> Iterator[Piece]:
    """Yield the paragraphs of an OpenDocument file, with their numbers."""
    yield from enumerate(_read_paragraphs(Archive(raw).read("content.xml"), OPEN_DOCUMENT), 1)


def _read_paragraphs(
    raw: bytes, dialect: Dialect, levels: Mapping[str, int] | None = None
) -> list[str]:
    """The paragraphs and the rows of tables of one XML part, with the white space behind them."""
    result: list[str] = []
    paragraphs: list[list[str]] = []
    """The paragraphs that are open: a text box or a note stands in one of another text."""

    rows: list[list[str]] = []
    """The cells of the rows that are open, since tables can be nested."""

    level = num_hidden = num_texts = 0
    is_title = False

    def start(tag: str, attributes: Attributes) -> None:
        nonlocal level, num_hidden, num_texts, is_title
        if num_hidden or tag in dialect.hidden:
            num_hidden += 1
            return
        if tag in dialect.paragraphs:
            paragraphs.append([])
            level = _number(attributes.get("outline-level")) or int(is_title)
        if tag in dialect.texts:
            num_texts += 1
        if tag == dialect.row:
            rows.append([])
        elif tag == dialect.cell and rows:
            rows[-1].append("")
        elif tag == "pStyle":
            level = (levels or {}).get(attributes.get("val", ""), 0)
        elif tag == "outlineLvl":
            level = _outline_level(attributes)
        elif tag == "sp":
            is_title = False
        elif tag == "ph":
            is_title = attributes.get("type") in ("title", "ctrTitle")
        elif paragraphs and tag in BREAKS:
            paragraphs[-1].append(BREAKS[tag])
        elif paragraphs and tag == "tab" and not attributes:
            # With attributes it is the place of a tabulator.
            paragraphs[-1].append("\t")

    def end(tag: str) -> None:
        nonlocal level, num_hidden, num_texts
        if num_hidden:
            num_hidden -= 1
            return
        if tag in dialect.texts:
            num_texts -= 1
        if tag in dialect.paragraphs:
            add("".join(paragraphs.pop()).strip(), heading=level)
            level = 0
        elif tag == dialect.row:
            add("\t".join(cell.strip() for cell in rows.pop()).rstrip(), is_row=True)

    def text(characters: str) -> None:
        if num_texts and not num_hidden and paragraphs:
            paragraphs[-1].append(characters.replace("\n", " "))

    def add(words: str, *, heading: int = 0, is_row: bool = False) -> None:
        if rows and rows[-1]:
            rows[-1][-1] += words + " "
        elif words:
            mark = "#" * min(heading, MAX_LEVEL) + " " * bool(heading)
            result.append(mark + words + ("\n" if is_row else "\n\n"))

    parse_xml(raw, start=start, end=end, text=text)
    return result


def _style_levels(raw: bytes) -> dict[str, int]:
    """The level of the headings of each style, by the style's identifier."""
    levels: dict[str, int] = {}
    parents: dict[str, str] = {}
    style = ""

    def start(tag: str, attributes: Attributes) -> None:
        nonlocal style
        value = attributes.get("val", "")
        if tag == "style":
            style = attributes.get("styleId", "")
        elif tag == "basedOn":
            parents[style] = value
        elif tag == "outlineLvl":
            levels[style] = _outline_level(attributes)
        elif tag == "name" and (match := HEADING_STYLE.fullmatch(value)):
            levels[style] = int(match[1] or 1)

    parse_xml(raw, start=start)
    for style in parents:
        above, seen = style, {style}
        while above not in levels and (above := parents.get(above, "")) and above not in seen:
            seen.add(above)
        levels.setdefault(style, levels.get(above, 0))
    return levels


def _outline_level(attributes: Attributes) -> int:
    """The level of a heading, counted from 1; 0 for other text, whose outline level is 9."""
    number = _number(attributes.get("val"))
    return number + 1 if number < 9 else 0


def _number(digits: str | None) -> int:
    return int(digits) if digits and digits.isdecimal() else 0


def _main_part(archive: Archive) -> str:
    main = next(_related(archive, "", ("officeDocument",)), None)
    if main is None:
        raise ValueError("it has no document")
    return main


def _related(archive: Archive, part: str, kinds: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of the parts that belong to a part, in the order of the kinds."""
    relations = [relation for _, relation in _relations(archive, part)]
    for kind in kinds:
        yield from (target for name, target in relations if name == kind)


def _relations(archive: Archive, part: str) -> list[tuple[str, tuple[str, str]]]:
    """The identifier of each relation of a part, its kind, and the name of the part it leads to."""
    folder, name = posixpath.split(part)
    path = posixpath.join(folder, "_rels", f"{name}.rels")
    relations: list[tuple[str, tuple[str, str]]] = []

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "Relationship" and attributes.get("TargetMode") != "External":
            kind = attributes.get("Type", "").rpartition("/")[2]
            target = posixpath.join("/", folder, attributes.get("Target", ""))
            relation = (kind, posixpath.normpath(target).lstrip("/"))
            relations.append((attributes.get("Id", ""), relation))

    if path in archive.names:
        parse_xml(archive.read(path), start=start)
    present = set(archive.names)
    return [relation for relation in relations if relation[1][1] in present]
