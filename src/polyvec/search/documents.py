"""Documents: the text of a file, and the line or page of every part of the text.

The end of a file's name says what kind it is: text, Markdown, source code, HTML, PDF, or a file of
rows (CSV, TSV and JSON lines), in which every row is a passage.
"""

import io
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polyvec import text_rows
from polyvec.chunking import SURROGATES
from polyvec.search.html_pages import html_pieces
from polyvec.search.pdf_pages import ContentTooLarge, pdf_pages
from polyvec.terminal import shorten

MARKDOWN = (".md", ".markdown")
TEXT = (".txt", ".text", ".rst", ".adoc", ".org", ".tex")
CODE = tuple(
    ".bash .c .cc .cfg .clj .cpp .cs .css .dart .ex .exs .erl .go .h .hpp .hs .ini .java .jl .js "
    ".jsx .kt .lua .m .ml .php .pl .proto .ps1 .py .pyi .r .rb .rs .scala .sh .sql .swift .toml "
    ".ts .tsx .vue .yaml .yml .zig".split()
)
HTML = (".html", ".htm", ".xhtml")
PDF = (".pdf",)
ROWS = tuple(suffix for suffix in text_rows.SUFFIXES if suffix not in (".txt", ".json"))
"""Files of rows. Most .json files are settings of programs, and hold no rows."""

SUFFIXES = MARKDOWN + TEXT + CODE + HTML + PDF + ROWS
"""The ends of the names of files that are searched. Other files are ignored without a message."""

MAX_NAME_CHARACTERS = 100
"""A longer name of a column is shortened, since each row repeats it."""

TEXT_FACTOR = 8
"""The text of a file has at most this many characters per byte of the file, and `SPARE_CHARACTERS`
more. Only files that say things more than once reach the limit: tables repeat the names of their
columns in every row, and pages of a PDF can share what they show."""

SPARE_CHARACTERS = 1_000_000

Unit = Literal["line", "page"]

HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file."""

    text: str
    starts: Sequence[int]
    """Positions of characters in the text, ascending, beginning with 0."""

    numbers: Sequence[int]
    """The line or page on which the text from each start on stands, ascending."""

    unit: Unit = "line"
    """The unit of the numbers, which are counted from 1."""

    is_split: bool = False
    """Whether every start begins a part, a row or a page, which no passage crosses."""

    is_markdown: bool = False
    """Whether `#` begins a heading."""

    cut: str = ""
    """The reason why the rest of the file is not read; empty if the text is whole."""

    def locate(self, position: int) -> int:
        """The line or page of the character at `position`."""
        return self.numbers[bisect_right(self.starts, position) - 1]

    def parts(self) -> Iterator[tuple[int, int]]:
        """The characters [start, end) of each part that is split into passages by itself."""
        starts = self.starts if self.is_split else [0]
        yield from zip(starts, [*starts[1:], len(self.text)], strict=True)


def read_document(raw: bytes, name: str) -> Document:
    """The text of a file with this name. Raises ValueError with the reason if it has none."""
    lower = name.lower()
    if lower.endswith(PDF):
        document = _join(pdf_pages(raw), len(raw), unit="page", is_split=True)
        if not document.text.strip():
            raise ValueError("it has no text; it may be a scan")
        return document
    if lower.endswith(HTML):
        pieces = html_pieces(decode(raw, _charset(raw)))
        return _join(pieces, len(raw), is_markdown=True)
    text = decode(raw)
    if lower.endswith(ROWS):
        rows = _read_rows(text, lower[lower.rindex(".") :])
        return _join(rows, len(raw), is_split=True)
    starts = array("q", [0])
    starts.extend(match.end() for match in re.finditer("\n", text))
    numbers = range(1, len(starts) + 1)
    return Document(text, starts, numbers, is_markdown=lower.endswith(MARKDOWN))


def decode(raw: bytes, charset: str = "utf-8-sig") -> str:
    """The text that the bytes encode: UTF-16 with a byte order mark, else `charset`.

    Raises ValueError if the bytes are not text.
    """
    encoding = text_rows.find_encoding(raw)
    name = charset if encoding != "utf-16" else encoding
    try:
        text = raw.decode(name)
    except UnicodeDecodeError as error:
        encoding_name = name.removesuffix("-sig").upper()
        raise ValueError(f"not text (byte {error.start} is not {encoding_name})") from None
    if "\0" in text:
        raise ValueError("not text (it contains NUL bytes)")
    return text


def _charset(raw: bytes) -> str:
    declaration = HTML_CHARSET.search(raw[:2048])
    if declaration is None:
        return "utf-8-sig"
    name = declaration[1].decode()
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(f"its encoding {name} is unknown") from None
    return "utf-8-sig" if name.lower() in ("utf-8", "utf8") else name


def _join(
    pieces: Iterable[tuple[int, str]],
    num_bytes: int,
    *,
    unit: Unit = "line",
    is_split: bool = False,
    is_markdown: bool = False,
) -> Document:
    """The text of the pieces, each of which comes with the line or page that it begins on.

    The text of a file of `num_bytes` is cut where it is much longer than the file.
    """
    parts: list[str] = []
    starts, numbers = array("q", [0]), array("q", [1])
    length, cut = 0, ""
    left = TEXT_FACTOR * num_bytes + SPARE_CHARACTERS
    try:
        for number, piece in pieces:
            if length + len(piece) > left:
                cut = f"only the text before {unit} {number} is read; the file says it repeatedly"
                break
            if length == 0:
                numbers[0] = number
            elif number != numbers[-1]:
                starts.append(length)
                numbers.append(number)
            parts.append(piece)
            length += len(piece)
    except ContentTooLarge as error:
        cut = str(error)
    # References of HTML and JSON may be halves of surrogate pairs, which cannot be encoded.
    text = SURROGATES.sub("\ufffd", "".join(parts))
    return Document(text, starts, numbers, unit, is_split, is_markdown, cut)


def _read_rows(text: str, suffix: str) -> Iterator[tuple[int, str]]:
    """Each row as lines of `name: value`, and the line on which the row begins.

    A row with more or fewer cells than the header is searched like the others.
    """
    lines = io.StringIO(text, newline=text_rows.newline_mode(suffix))
    for number, record, flaw in text_rows.parse_text(lines, suffix):
        if record is None:
            raise ValueError(f"line {number}: {flaw}")
        if row := _spell_record(record):
            yield number, row + "\n\n"


def _spell_record(record: text_rows.Record) -> str:
    values = {name: _spell_value(value) for name, value in record.items()}
    return "\n".join(
        value if name in ("", "text") else f"{shorten(name, MAX_NAME_CHARACTERS)}: {value}"
        for name, value in values.items()
        if value
    )


def _spell_value(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
