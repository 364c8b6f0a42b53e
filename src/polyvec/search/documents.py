"""From a file's bytes to its text, and where in the file each part of the text stands.

Every kind of file is told by how its name ends: text, Markdown, source code, HTML, PDF, and tables
(CSV, TSV and JSON lines) whose rows are passages of their own.
"""

import csv
import io
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Literal

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
COMMAS = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = MARKDOWN + TEXT + CODE + HTML + PDF + COMMAS + JSON_LINES
"""What is searched. Other files are none of our business and are passed over in silence."""

MAX_PAGES = 5_000
"""Of a PDF; text is drawn from some hundred pages a second at best."""

BROKEN_PDF = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError)
"""What pypdf raises, beside its own errors, on a file whose objects are not what they should be."""

Unit = Literal["line", "page"]

CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{1,40})", re.IGNORECASE)
BLANK = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text."""

    text: str
    marks: Sequence[tuple[int, int]]
    """From this character on, the text stands on this line or page; ascending, the first at 0."""

    unit: Unit = "line"
    """What the marks count, from 1."""

    apart: bool = False
    """Whether marks begin parts that no passage joins: rows, pages."""

    is_markdown: bool = False
    """Whether `#` starts a heading."""

    def find(self, position: int) -> int:
        """The line or page of a character."""
        return self.marks[bisect_right(self.marks, position, key=lambda mark: mark[0]) - 1][1]

    def parts(self) -> Iterator[tuple[int, int]]:
        """Characters [start, end) to be cut by themselves."""
        starts = [start for start, _ in self.marks] if self.apart else [0]
        yield from zip(starts, [*starts[1:], len(self.text)], strict=True)


def read_document(raw: bytes, name: str) -> Document:
    """The text of a file called `name`. Raises ValueError saying why it has none."""
    lower = name.lower()
    if lower.endswith(PDF):
        return _read_pdf(raw)
    if lower.endswith(HTML):
        return _read_html(decode(raw, _charset(raw)))
    text = decode(raw)
    if lower.endswith(COMMAS):
        return _join_rows(_comma_rows(text, "\t" if lower.endswith(".tsv") else ""))
    if lower.endswith(JSON_LINES):
        return _join_rows(_json_rows(text))
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    marks = [(start, number) for number, start in enumerate(lines, 1)]
    return Document(text, marks, is_markdown=lower.endswith(MARKDOWN))


def decode(raw: bytes, charset: str = "utf-8-sig") -> str:
    """Bytes as text: UTF-16 with a byte order mark, else `charset`. Raises ValueError."""
    name = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else charset
    try:
        text = raw.decode(name)
    except UnicodeDecodeError as error:
        shown = name.removesuffix("-sig").upper()
        raise ValueError(f"not text (byte {error.start} is not {shown})") from None
    if "\0" in text:
        raise ValueError("not text (it has NUL bytes)")
    return text


def _charset(raw: bytes) -> str:
    found = CHARSET.search(raw[:2048])
    if found is None:
        return "utf-8-sig"
    name = found[1].decode()
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(f"its encoding {name} is not known") from None
    return "utf-8-sig" if name.lower() in ("utf-8", "utf8") else name


def _join_rows(rows: Iterator[tuple[int, str]]) -> Document:
    """Rows, each with the line it begins on, as one text."""
    parts, marks, length = [], [], 0
    for line, row in rows:
        marks.append((length, line))
        parts.append(row + "\n\n")
        length += len(row) + 2
    # JSON may spell halves of surrogate pairs, which no file can hold.
    text = SURROGATES.sub("\ufffd", "".join(parts))
    return Document(text, marks or [(0, 1)], apart=True)


def _comma_rows(text: str, delimiter: str) -> Iterator[tuple[int, str]]:
    """Each row below the header as lines of `name: value`."""
    if not delimiter:
        delimiter = max(",;\t|", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = next(reader, [])
        line = reader.line_num + 1
        for row in reader:
            extra = [""] * (len(row) - len(names))
            pairs = zip([*names, *extra], row, strict=False)
            if any(map(str.strip, row)):
                yield line, _spell((name.strip(), value.strip()) for name, value in pairs)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _json_rows(text: str) -> Iterator[tuple[int, str]]:
    """Each line's string, or its object as lines of `name: value`."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from None
        fields = value if isinstance(value, dict) else {"": value}
        yield number, _spell((name, _plain(value)) for name, value in fields.items())


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _spell(pairs: Iterator[tuple[str, str]]) -> str:
    return "\n".join(
        value if name in ("", "text") else f"{name}: {value}" for name, value in pairs if value
    )


def _read_pdf(raw: bytes) -> Document:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    parts, marks, length = [], [], 0
    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted:
            raise ValueError("it is encrypted")
        if len(reader.pages) > MAX_PAGES:
            raise ValueError(f"it has more than {MAX_PAGES} pages")
        for number, page in enumerate(reader.pages, 1):
            text = SURROGATES.sub("\ufffd", page.extract_text()).replace("\0", "") + "\n\n"
            marks.append((length, number))
            parts.append(text)
            length += len(text)
    except (PyPdfError, RecursionError, *BROKEN_PDF) as error:
        raise ValueError(f"not a PDF that can be read ({error})") from None
    text = "".join(parts)
    if not text.strip():
        raise ValueError("it has no text (a scan?)")
    return Document(text, marks, unit="page", apart=True)


def _read_html(text: str) -> Document:
    page = _Page()
    try:
        page.feed(text)
        page.close()
    except AssertionError as error:
        # It asserts what a marked section of a broken page does not keep.
        raise ValueError(f"not HTML that can be read ({error})") from None
    joined = SURROGATES.sub("\ufffd", "".join(page.parts))
    return Document(joined, page.marks, is_markdown=True)


class _Page(HTMLParser):
    """Collects what a page says, headings as Markdown's, with the source's line numbers.

    The standard library's parser is the one that knows them.
    """

    UNSEEN = frozenset("script style template noscript svg iframe nav select textarea".split())
    INLINE = frozenset(
        "a abbr b bdi bdo cite code data dfn em font i kbd label mark q rp rt ruby s samp small "
        "span strike strong sub sup time tt u var wbr".split()
    )
    LEVELS = {"title": 1} | {f"h{level}": level for level in range(1, 7)}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.marks = [(0, 1)]
        self.length = 0
        self.unseen: list[str] = []
        self.verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block, a heading, or something that is not shown."""
        if tag in self.UNSEEN:
            self.unseen.append(tag)
        elif tag in self.LEVELS:
            self._say("\n\n")
            self.marks.append((self.length, self.getpos()[0]))
            self._say("#" * self.LEVELS[tag] + " ")
        elif tag not in self.INLINE:
            self.verbatim += tag == "pre"
            self._say("\n\n" if tag in ("p", "pre", "table") else "\n")

    def handle_endtag(self, tag: str) -> None:
        """End what was begun."""
        if tag in self.UNSEEN:
            # What is open inside of it ends with it.
            if tag in self.unseen:
                del self.unseen[self.unseen.index(tag) :]
        elif tag not in self.INLINE:
            self.verbatim -= tag == "pre" and self.verbatim > 0
            self._say("\n\n" if tag in self.LEVELS or tag == "p" else "\n")

    def handle_data(self, data: str) -> None:
        """Take text, white space as a browser shows it."""
        shown = data if self.verbatim else BLANK.sub(" ", data)
        if not self.unseen and shown:
            blank = len(data) - len(data.lstrip())
            self.marks.append((self.length, self.getpos()[0] + data.count("\n", 0, blank)))
            self._say(shown)

    def _say(self, text: str) -> None:
        if not self.unseen:
            self.parts.append(text)
            self.length += len(text)
