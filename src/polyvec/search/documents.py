"""Documents: the text of a file, and the line or page of every part of the text.

The end of a file's name says what kind it is. `KINDS` has what reads the files of each kind; to
support another kind of file, add it there.
"""

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal, NamedTuple

from polyvec import text_rows
from polyvec.chunking import SURROGATES
from polyvec.search.readers.archives import gunzip
from polyvec.search.readers.books import book_pieces
from polyvec.search.readers.encodings import cookie_label, decode, html_label, xml_label
from polyvec.search.readers.front_matter import front_matter_end
from polyvec.search.readers.html_pages import html_pieces
from polyvec.search.readers.json_text import json_pieces
from polyvec.search.readers.mail import mailbox_pieces, message_pieces
from polyvec.search.readers.notebooks import notebook_pieces
from polyvec.search.readers.office_files import open_document_pieces, slide_pieces, word_pieces
from polyvec.search.readers.pdf_pages import pdf_pages
from polyvec.search.readers.pieces import Cut, Piece
from polyvec.search.readers.rows import MAX_ROWS, row_pieces
from polyvec.search.readers.sheets import sheet_pieces
from polyvec.search.readers.subtitles import subtitle_pieces
from polyvec.search.readers.xml_text import xml_pieces

TEXT_FACTOR = 8
"""The text of a file has at most this many characters per byte of the file, and `SPARE_CHARACTERS`
more. Only files that say things more than once reach the limit: tables repeat the names of their
columns in every row, and pages of a PDF can share what they show."""

PACKED_TEXT_FACTOR = 40
"""The same of a packed file."""

SPARE_CHARACTERS = 1_000_000

Unit = Literal["line", "page"]


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file."""

    text: str
    starts: Sequence[int]
    """Positions of characters in the text, ascending, beginning with 0."""

    numbers: Sequence[int]
    """The line or page on which the text from each start on stands."""

    unit: Unit = "line"
    """The unit of the numbers, which are counted from 1."""

    is_split: bool = False
    """Whether every start begins a part, a row or a page, which no passage crosses."""

    is_markdown: bool = False
    """Whether `#` begins a heading, after the front matter."""

    cut: str = ""
    """The reason why the rest of the file is not read; empty if the text is whole."""

    note: str = ""
    """What the user should know about the text; empty if it is certain."""

    front_matter: int = 0
    """The number of characters of the front matter, which is a part by itself."""

    def locate(self, position: int) -> int:
        """The line or page of the character at `position`."""
        return self.numbers[bisect_right(self.starts, position) - 1]

    def parts(self) -> Iterator[tuple[int, int]]:
        """The characters [start, end) of each part that is split into passages by itself."""
        starts = self.starts if self.is_split else sorted({0, self.front_matter})
        yield from zip(starts, [*starts[1:], len(self.text)], strict=True)


class Kind(NamedTuple):
    """What reads the files of a kind, and what its pieces are."""

    read: Callable[..., Iterable[Piece]]
    """A reader of the file's text, or of its bytes. Readers of rows take `max_rows`."""

    label: Callable[[bytes], str] | None = None
    """The encoding that a text file declares; None for files that are not text."""

    unit: Unit = "line"
    is_split: bool = False
    is_markdown: bool = False
    has_rows: bool = False
    needs: tuple[str, str] = ("", "")
    """A package that the reader needs, and the extra that installs it."""

    text_factor: int = TEXT_FACTOR


def _lines(text: str) -> Iterator[Piece]:
    """Yield each line with its line break."""
    start = 0
    for number, match in enumerate(re.finditer("\n", text), 1):
        yield number, text[start : match.end()]
        start = match.end()
    yield text.count("\n") + 1, text[start:]


def _undeclared(raw: bytes) -> str:
    """The encoding that a file of a format declares which has no place for it: none."""
    return ""


PLAIN = Kind(_lines, cookie_label)
"""Text, in which every line says where it stands."""

MARKDOWN = PLAIN._replace(is_markdown=True)
HTML = Kind(html_pieces, html_label, is_markdown=True)
JSON = Kind(json_pieces, _undeclared, has_rows=True)
XML = Kind(xml_pieces, xml_label)
WORD = Kind(word_pieces, is_markdown=True, text_factor=PACKED_TEXT_FACTOR)
SLIDES = WORD._replace(read=slide_pieces, unit="page", is_split=True)
SHEETS = Kind(
    sheet_pieces,
    is_split=True,
    has_rows=True,
    needs=("openpyxl", "documents"),
    text_factor=PACKED_TEXT_FACTOR,
)
SUBTITLES = Kind(subtitle_pieces, _undeclared)
NOTEBOOK = Kind(notebook_pieces, _undeclared, unit="page", is_split=True, is_markdown=True)

TEXT_SUFFIXES = (
    ".txt .text .rst .adoc .asciidoc .org .tex .bib .log .conf .diff .patch .po .pot .desktop "
    ".service .properties .textile .wiki .me .nfo .man"
).split()

CODE_SUFFIXES = (
    ".bash .c .cc .cfg .clj .cmake .cpp .cs .css .cts .dart .el .ex .exs .erl .fs .go .gradle "
    ".groovy .h .hpp .hs .ini .java .jl .js .jsx .kt .less .lisp .lua .m .mjs .ml .mts .nim .php "
    ".pl .pm .proto .ps1 .py .pyi .r .rb .rs .scala .scm .scss .sh .sql .swift .tcl .tf .toml .ts "
    ".tsx .v .vim .vue .yaml .yml .zig .zsh"
).split()

ROW_SUFFIXES = [suffix for suffix in text_rows.SUFFIXES if suffix not in (".txt", ".json")]

KINDS: dict[str, Kind] = {
    **dict.fromkeys([*TEXT_SUFFIXES, *CODE_SUFFIXES], PLAIN),
    **dict.fromkeys(".md .markdown .mdown .mkd .mdx .qmd .rmd".split(), MARKDOWN),
    **dict.fromkeys(".html .htm .xhtml".split(), HTML),
    **dict.fromkeys(".json .jsonc .json5 .geojson .webmanifest".split(), JSON),
    **dict.fromkeys(".xml .xsd .xsl .xslt .rss .atom .opml .dbk .tei .svg".split(), XML),
    **{
        suffix: Kind(partial(row_pieces, suffix=suffix), _undeclared, is_split=True, has_rows=True)
        for suffix in ROW_SUFFIXES
    },
    **dict.fromkeys((".srt", ".vtt"), SUBTITLES),
    **dict.fromkeys((".docx", ".docm", ".dotx"), WORD),
    **dict.fromkeys((".pptx", ".pptm", ".ppsx"), SLIDES),
    **dict.fromkeys((".xlsx", ".xlsm"), SHEETS),
    **dict.fromkeys((".odt", ".odp", ".ods", ".ott"), WORD._replace(read=open_document_pieces)),
    ".epub": SLIDES._replace(read=book_pieces),
    ".ipynb": NOTEBOOK,
    ".eml": Kind(message_pieces, is_split=True),
    ".mbox": Kind(mailbox_pieces, is_split=True),
    ".pdf": Kind(pdf_pages, unit="page", is_split=True, needs=("pypdfium2", "search")),
}
"""What reads a file, by the end of its name in lower case."""

PACKED = ".gz"
"""The end of the name of a file that is packed by gzip. What stands before it says its kind."""

SUFFIX = re.compile(r"(?<=.)\.[a-z][\w+~-]*\Z")
"""The end of a name that says what a file is. A number or a date behind a dot does not, as in
`app.log.1`."""

TEXT_NAMES = frozenset(
    "authors build changelog changes cmakelists containerfile contributing copying copyright "
    "credits dockerfile faq gemfile history install jenkinsfile justfile licence license makefile "
    "news notice procfile rakefile readme thanks todo vagrantfile".split()
)
"""Names, in lower case, that mean a text whatever stands behind their first dot."""


def find_kind(name: str) -> Kind | None:
    """The kind of the file with this name, which may be a path; None if no reader is known for it.

    A name without an end that says it, such as `Makefile`, is that of a text.
    """
    lower = name.lower().rpartition("/")[2].removesuffix(PACKED)
    suffix = SUFFIX.search(lower)
    if suffix is None:
        return PLAIN
    known = KINDS.get(suffix[0])
    return PLAIN if known is None and lower.partition(".")[0] in TEXT_NAMES else known


def read_document(raw: bytes, name: str, *, max_rows: int = MAX_ROWS) -> Document:
    """The text of a file with this name. Of a table, the first `max_rows` rows are read.

    Raises ValueError with the reason if the file has no text that can be read.
    """
    if name.lower().endswith(PACKED):
        raw = gunzip(raw)
    kind = find_kind(name)
    if kind is None:
        raise ValueError("files of this kind are not read")
    if reason := missing_package(kind):
        raise ValueError(reason)
    note, content = "", raw
    if kind.label is not None:
        content, note = decode(raw, kind.label(raw))
    options = {"max_rows": max_rows} if kind.has_rows else {}
    return _join(kind.read(content, **options), kind, len(raw), note)


def missing_package(kind: Kind) -> str:
    """A sentence that says how to install the package that a kind needs; "" if it is there."""
    package, extra = kind.needs
    if not package or find_spec(package) is not None:
        return ""
    return f"needs {package}: pip install 'polyvec[{extra}]'"


def _join(pieces: Iterable[Piece], kind: Kind, num_bytes: int, note: str) -> Document:
    """The text of the pieces.

    The text of a file of `num_bytes` is cut where it is much longer than the file.
    """
    parts: list[str] = []
    starts, numbers = array("q", [0]), array("q", [1])
    length, cut = 0, ""
    left = kind.text_factor * num_bytes + SPARE_CHARACTERS
    try:
        for number, piece in pieces:
            if length + len(piece) > left:
                cut = f"only the text before {kind.unit} {number} is read; the file repeats it"
                break
            if length == 0:
                numbers[0] = number
            elif kind.is_split or number != numbers[-1]:
                starts.append(length)
                numbers.append(number)
            parts.append(piece)
            length += len(piece)
    except Cut as error:
        cut = str(error)
    # References of HTML and JSON may be halves of surrogate pairs, which cannot be encoded.
    text = SURROGATES.sub("\ufffd", "".join(parts))
    front_matter = front_matter_end(text) if kind is MARKDOWN else 0
    return Document(
        text,
        starts,
        numbers,
        kind.unit,
        kind.is_split,
        kind.is_markdown,
        cut,
        note,
        front_matter,
    )
