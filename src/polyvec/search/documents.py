"""Documents: the text of a file, and the line or page of every part of the text.

The end of a file's name says what kind it is: text, Markdown, source code, HTML, PDF, or a file of
rows (CSV, TSV and JSON lines), in which every row is a passage.
"""

import io
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Literal

from polyvec import text_rows
from polyvec.chunking import SURROGATES

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

MAX_PDF_PAGES = 5_000
"""A longer PDF is not read. Extracting the text takes at least a second per hundred pages."""

BROKEN_PDF_ERRORS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError)
"""The errors, beside its own, that pypdf raises for a file with invalid objects."""

Unit = Literal["line", "page"]

HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{1,40})", re.IGNORECASE)
WHITE_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file."""

    text: str
    locations: Sequence[tuple[int, int]]
    """Pairs of a character's position in the text and a line or page, both ascending. The text from
    that character on stands on that line or page. The first position is 0."""

    unit: Unit = "line"
    """The unit of the locations, which are counted from 1."""

    is_split: bool = False
    """Whether every location begins a part, a row or a page, which no passage crosses."""

    is_markdown: bool = False
    """Whether `#` begins a heading."""

    def locate(self, position: int) -> int:
        """The line or page of the character at `position`."""
        after = bisect_right(self.locations, position, key=lambda location: location[0])
        return self.locations[after - 1][1]

    def parts(self) -> Iterator[tuple[int, int]]:
        """The characters [start, end) of each part that is split into passages by itself."""
        starts = [start for start, _ in self.locations] if self.is_split else [0]
        yield from zip(starts, [*starts[1:], len(self.text)], strict=True)


def read_document(raw: bytes, name: str) -> Document:
    """The text of a file with this name. Raises ValueError with the reason if it has none."""
    lower = name.lower()
    if lower.endswith(PDF):
        return _read_pdf(raw)
    if lower.endswith(HTML):
        return _read_html(decode(raw, _charset(raw)))
    text = decode(raw)
    if lower.endswith(ROWS):
        return _join_rows(_read_rows(text, lower[lower.rindex(".") :]))
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    locations = [(start, number) for number, start in enumerate(lines, 1)]
    return Document(text, locations, is_markdown=lower.endswith(MARKDOWN))


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


def _join_rows(rows: Iterator[tuple[int, str]]) -> Document:
    """Rows as one text; each comes with the line on which it begins."""
    parts, locations, length = [], [], 0
    for line, row in rows:
        locations.append((length, line))
        parts.append(row + "\n\n")
        length += len(row) + 2
    # JSON escapes may be halves of surrogate pairs, which cannot be encoded.
    text = SURROGATES.sub("\ufffd", "".join(parts))
    return Document(text, locations or [(0, 1)], is_split=True)


def _read_rows(text: str, suffix: str) -> Iterator[tuple[int, str]]:
    """Each row as lines of `name: value`, and the line on which the row begins.

    A row with more or fewer cells than the header is searched like the others.
    """
    lines = io.StringIO(text, newline=text_rows.newline_mode(suffix))
    for number, record, flaw in text_rows.parse_text(lines, suffix):
        if record is None:
            raise ValueError(f"line {number}: {flaw}")
        if row := _spell_record(record):
            yield number, row


def _spell_record(record: text_rows.Record) -> str:
    values = {name: _spell_value(value) for name, value in record.items()}
    return "\n".join(
        value if name in ("", "text") else f"{name}: {value}"
        for name, value in values.items()
        if value
    )


def _spell_value(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_pdf(raw: bytes) -> Document:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    parts, locations, length = [], [], 0
    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted:
            raise ValueError("it is encrypted")
        if len(reader.pages) > MAX_PDF_PAGES:
            raise ValueError(f"it has more than {MAX_PDF_PAGES} pages")
        for number, page in enumerate(reader.pages, 1):
            text = SURROGATES.sub("\ufffd", page.extract_text()).replace("\0", "") + "\n\n"
            locations.append((length, number))
            parts.append(text)
            length += len(text)
    except (PyPdfError, RecursionError, *BROKEN_PDF_ERRORS) as error:
        raise ValueError(f"not a valid PDF ({error})") from None
    text = "".join(parts)
    if not text.strip():
        raise ValueError("it has no text; it may be a scan")
    return Document(text, locations, unit="page", is_split=True)


def _read_html(text: str) -> Document:
    page = _Page()
    try:
        page.feed(text)
        page.close()
    except AssertionError as error:
        # The parser asserts conditions that a marked section of a broken page does not meet.
        raise ValueError(f"not valid HTML ({error})") from None
    joined = SURROGATES.sub("\ufffd", "".join(page.parts))
    return Document(joined, page.locations, is_markdown=True)


class _Page(HTMLParser):
    """Collects the text of a page, its headings as in Markdown, and the source's line numbers.

    Of the common parsers only the standard library's gives line numbers.
    """

    HIDDEN = frozenset("script style template noscript svg iframe nav select textarea".split())
    INLINE = frozenset(
        "a abbr b bdi bdo cite code data dfn em font i kbd label mark q rp rt ruby s samp small "
        "span strike strong sub sup time tt u var wbr".split()
    )
    LEVELS = {"title": 1} | {f"h{level}": level for level in range(1, 7)}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.locations = [(0, 1)]
        self.length = 0
        self.hidden: list[str] = []
        """The open elements inside of which nothing is shown."""
        self.verbatim = 0
        """The number of open `pre` elements."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block, a heading or a hidden element."""
        if tag in self.HIDDEN:
            self.hidden.append(tag)
        elif tag in self.LEVELS:
            self._append("\n\n")
            self.locations.append((self.length, self.getpos()[0]))
            self._append("#" * self.LEVELS[tag] + " ")
        elif tag not in self.INLINE:
            self.verbatim += tag == "pre"
            self._append("\n\n" if tag in ("p", "pre", "table") else "\n")

    def handle_endtag(self, tag: str) -> None:
        """End a block, a heading or a hidden element."""
        if tag in self.HIDDEN:
            # Elements that are open inside of it end with it.
            if tag in self.hidden:
                del self.hidden[self.hidden.index(tag) :]
        elif tag not in self.INLINE:
            self.verbatim -= tag == "pre" and self.verbatim > 0
            self._append("\n\n" if tag in self.LEVELS or tag == "p" else "\n")

    def handle_data(self, data: str) -> None:
        """Append text, with its white space collapsed as a browser does."""
        shown = data if self.verbatim else WHITE_SPACE.sub(" ", data)
        if not self.hidden and shown:
            blank = len(data) - len(data.lstrip())
            line = self.getpos()[0] + data.count("\n", 0, blank)
            self.locations.append((self.length, line))
            self._append(shown)

    def _append(self, text: str) -> None:
        if not self.hidden:
            self.parts.append(text)
            self.length += len(text)
