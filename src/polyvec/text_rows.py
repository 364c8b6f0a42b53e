"""The rows of text files: tables, JSON lines, and lines of plain text.

    .txt                one text per line; so does a file with any other name
    .jsonl  .ndjson     one JSON object or JSON string per line
    .json               one JSON array of them, or one per line
    .csv  .tsv          a table, whose first row names the columns

These rules hold for every caller:

1. A file is UTF-8 or UTF-16, with or without a byte order mark, or UTF-32 with one.
2. The columns of a table are separated as `find_delimiter` says. A cell may be of any length, and
   may hold line breaks if it is quoted. A quotation mark that is not closed costs only its own row.
3. A blank line of a table or of JSON lines is not a row. A blank line of plain text is an empty
   text, so that the n-th result belongs to the n-th line.
4. A row has the number of the line on which it begins, counted from 1. In a JSON array it has its
   position in the array.

To support another kind of text file, add it to `SUFFIXES` and to `parse_text`.
"""

import codecs
import csv
import io
import json
import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice, zip_longest
from typing import Any, BinaryIO, NamedTuple

Record = dict[str, Any]
"""A row: the value of each column under the column's name."""

LINES = (".txt", ".jsonl", ".ndjson")
"""The ends of names, in lower case, of files with one row per line."""

TABLES = (".csv", ".tsv")
"""The same of tables, whose rows may take several lines."""

SUFFIXES = (*TABLES, ".json", *LINES)
"""The same of all text files that hold rows."""

DELIMITERS = ",\t;|"
"""Characters that may separate the cells of a table, the most likely first."""

NO_DELIMITER = "\x1f"
"""The delimiter of a table with a single column: a character that stands in no text."""

SAMPLE_LINES = 200
"""Lines of a table from which its delimiter is found."""

MAX_CELL_CHARACTERS = 2**31 - 1
"""The largest limit that the csv module takes on every system. Its default is 131,072."""

MAX_REPEATS = 10
"""A table is read again below a quotation mark that is not closed, but no more often than this. The
cells of what remains then end with their lines, so that the time is linear in the table's size."""

SPARE_REPEATED_LINES = 100_000
"""Lines that may be read again in addition, which matters to short tables alone."""

NOT_TEXT = "holds bytes that are not text"
"""The flaw of a row that has bytes which its file's encoding does not allow."""

SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""The beginning of an escape in JSON that may give half of a surrogate pair."""

HALF_PAIR = "holds half of a surrogate pair, which is no character"
"""The flaw of a row of JSON with an escape such as `\\ud83d` alone."""

MAX_JSON_DEPTH = 200
"""Deeper lists and objects are refused. Python parses about 990 levels, and writes fewer."""

BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|([\[{])|([\]}])', re.DOTALL)
"""A string of JSON, or the beginning or the end of a list or an object."""

ARRAY_GAP = re.compile(r"[\s,]*+")
"""White space and commas, which separate the rows of an array in JSON."""


class ParsedRow(NamedTuple):
    """A row as it stands in a file, before its columns are checked."""

    number: int
    record: Record | None
    """None if there is no way to tell what the row holds."""

    flaw: str = ""
    """The reason why the row cannot be used; empty if none is known."""


class BrokenRow(ParsedRow):
    """A row without a record."""

    source: str
    """The row as it stands in the file."""

    def __new__(cls, number: int, flaw: str, source: str) -> "BrokenRow":
        """Return the row: a `ParsedRow` that also has a `source`."""
        row = super().__new__(cls, number, None, flaw)
        row.source = source
        return row


def find_encoding(first_bytes: bytes) -> str:
    """The encoding of a text file that begins with these bytes, of which four are enough.

    It is that of the byte order mark. Without one it is UTF-16 if the first two characters can be
    nothing else, because half of their bytes are zero; otherwise it is UTF-8.
    """
    start = first_bytes[:4]
    if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "utf-32"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    zeros = [byte == 0 for byte in start]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else "utf-8-sig"


def mark_undecoded(error: UnicodeError) -> tuple[str, int]:
    """A lone surrogate in place of bytes that are not text, so that only their row is lost."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udc80", error.end


def newline_mode(suffix: str) -> str:
    """The `newline` argument with which `open` and `io.StringIO` split a file into its lines.

    Only a table may end its lines with a carriage return alone.
    """
    return "" if suffix in TABLES else "\n"


@contextmanager
def decode_lines(
    file: BinaryIO, suffix: str, encoding: str | None = None
) -> Iterator[Iterable[str]]:
    """The lines of an open file from its position on; `find_encoding` tells the encoding.

    Bytes that are not text in it become surrogates, so that only their row is lost.
    """
    assert isinstance(file, io.BufferedReader), "peeking works on pipes too, seeking does not"
    encoding = encoding or find_encoding(file.peek(4))
    # Python's own handler, surrogateescape, does not know UTF-16.
    codecs.register_error("polyvec-mark", mark_undecoded)
    errors = "surrogateescape" if encoding == "utf-8-sig" else "polyvec-mark"
    lines = io.TextIOWrapper(file, encoding, errors=errors, newline=newline_mode(suffix))
    try:
        yield lines
    finally:
        # Whoever opened the file closes it; standard input stays open.
        lines.detach()


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no surrogate, and so no undecoded byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_text(
    lines: Iterable[str], suffix: str, *, needed: Collection[str] = (), first: int = 1
) -> Iterator[ParsedRow]:
    """The rows of a file whose name ends in `suffix`, given its lines with their line breaks.

    `first` is the number of the first line. Raises ValueError if a table lacks one of the `needed`
    columns, and for an array in JSON without a single whole row.
    """
    match suffix:
        case ".csv":
            return _parse_table(lines, ",", needed)
        case ".tsv":
            return _parse_table(lines, "\t", needed)
        case ".jsonl" | ".ndjson":
            return _parse_json_lines(lines, first)
        case ".json":
            return _parse_json(lines)
        case _:
            return _parse_lines(lines, first)


def check_columns(needed: Collection[str], names: Collection[str]) -> None:
    """Raise ValueError if one of the needed columns is not among the names."""
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"it has {', '.join(names) or 'none'}"
        )


def find_delimiter(lines: Sequence[str], preferred: str = ",", needed: Collection[str] = ()) -> str:
    r"""The character that separates the cells of a table, given its first lines.

    1. A first line `sep=;` names it, as Excel writes it.
    2. Otherwise the lines are parsed with comma, tab, semicolon and bar, and those are compared
       with which the first row, the header, has more than one cell. If there are none, the table
       has one column: `NO_DELIMITER`.
    3. The best has the most `needed` columns in its header. If several do, it has the most rows
       that are quoted correctly and have as many cells as the header; the sum is reduced by up to
       one half if cells begin with a space, as in prose. If several do, `preferred` comes first,
       then the others in the order above. A .tsv file prefers the tab, a .csv file the comma.

    >>> find_delimiter(["a;b\n", "1,5;2,5\n"]), find_delimiter(["text\n", "one, two\n"])
    (';', '\x1f')
    """
    named = _named_delimiter(lines[0] if lines else "")
    if named:
        return named
    best, highest = NO_DELIMITER, (0, 0.0)
    for delimiter in sorted(DELIMITERS, key=lambda delimiter: delimiter != preferred):
        rows = list(_whole_rows(lines, delimiter))
        header = rows[0].cells if rows else []
        if len(header) > 1:
            num_needed = len({name.strip() for name in header} & {*needed})
            rank = (num_needed, _plausibility(rows))
            if best == NO_DELIMITER or rank > highest:
                best, highest = delimiter, rank
    return best


def _named_delimiter(line: str) -> str:
    """The delimiter that a line `sep=;` names, in quotes or not; empty if it is no such line."""
    words = line.rstrip("\r\n").strip('"')
    is_named = words[:4].lower() == "sep=" and len(words) == 5 and not words[4].isalnum()
    return words[4] if is_named else ""


class _TableRow(NamedTuple):
    """A row of a table, split into its cells."""

    number: int
    cells: list[str]
    source: str = ""
    """The line, if its quotation marks are wrong. Its cells are then split at every delimiter."""

    is_open: bool = False
    """Whether a quoted cell does not end in the line."""


def _whole_rows(lines: Sequence[str], delimiter: str) -> Iterator[_TableRow]:
    """The rows that stand whole in the first lines of a table, without blank lines."""
    for row in split_rows(lines, delimiter):
        # The row of the last line may go on below it.
        if row.is_open and len(lines) >= SAMPLE_LINES:
            return
        if row.cells:
            yield row


def _plausibility(rows: Sequence[_TableRow]) -> float:
    """The share of rows that are like their header, reduced if cells begin with a space."""
    width = len(rows[0].cells)
    like = sum(len(row.cells) == width and not row.source for row in rows) / len(rows)
    later = [cell for row in rows for cell in row.cells[1:]]
    spaced = sum(cell.startswith(" ") for cell in later) / max(1, len(later))
    return like * (1 - spaced / 2)


def split_rows(
    lines: Iterable[str], delimiter: str, *, skip_spaces: bool = False
) -> Iterator[_TableRow]:
    """The rows of a table, each with the number of its first line; blank lines have no cells.

    If a quotation mark is not closed, or closed in the middle of a cell, its line is a row of its
    own, and reading goes on with the next line. With `skip_spaces`, a quotation mark after a space
    begins a quoted cell as well.
    """
    source, again, taken = iter(lines), deque[str](), list[str]()
    number, num_repeated = 1, 0
    parse = partial(csv.reader, delimiter=delimiter, skipinitialspace=skip_spaces, strict=True)

    def take() -> Iterator[str]:
        while (line := again.popleft() if again else next(source, None)) is not None:
            taken.append(line)
            yield line

    reader = parse(take())
    while True:
        taken.clear()
        if num_repeated > MAX_REPEATS * number + SPARE_REPEATED_LINES:
            reader = parse(islice(take(), 1))
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            again.extendleft(reversed(taken[1:]))
            num_repeated += len(taken) - 1
            reader = parse(take())
            cells = taken[0].rstrip("\r\n").split(delimiter)
            yield _TableRow(number, cells, taken[0], is_open=_is_open(taken[0], delimiter))
            number += 1
        else:
            yield _TableRow(number, cells)
            number += len(taken)


def _is_open(line: str, delimiter: str) -> bool:
    """Whether a quoted cell does not end in a line."""
    try:
        next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def _parse_table(
    lines: Iterable[str], preferred: str, needed: Collection[str]
) -> Iterator[ParsedRow]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    lines = iter(lines)
    sample = list(islice(lines, SAMPLE_LINES))
    delimiter = find_delimiter(sample, preferred, needed)
    sampled = _whole_rows(sample, delimiter)
    has_spaces = any(cell.startswith(' "') for row in sampled for cell in row.cells)
    rows = split_rows(chain(sample, lines), delimiter, skip_spaces=has_spaces)
    if sample and _named_delimiter(sample[0]):
        next(rows)
    names = next(([cell.strip() for cell in row.cells] for row in rows if row.cells), [])
    check_columns(needed, names)
    for row in rows:
        cells = _mend(row, delimiter, len(names)) if row.source else row.cells
        while len(cells) > len(names) and not cells[-1].strip():
            del cells[-1]
        if not is_utf8("".join(cells)):
            yield BrokenRow(row.number, NOT_TEXT, row.source or delimiter.join(cells))
        elif row.is_open and (len(cells) != len(names) or delimiter != "\t"):
            # Tables with tabs often have no quoting at all.
            flaw = "has a quotation mark that is not closed"
            yield BrokenRow(row.number, flaw, row.source.rstrip("\r\n"))
        elif len(cells) > 1 or "".join(cells).strip() or row.cells == [""]:
            same = len(cells) == len(names)
            flaw = "" if same else f"has {len(cells)} cells, the header {len(names)}"
            yield ParsedRow(row.number, _name_cells(names, cells), flaw)


def _mend(row: _TableRow, delimiter: str, num_cells: int) -> list[str]:
    """The cells of a line whose quotation marks are wrong.

    If it has as many cells as the header without regard to quotation marks, these are part of the
    text. Otherwise the csv module makes the best of them.
    """
    if len(row.cells) == num_cells:
        return row.cells
    return next(csv.reader([row.source], delimiter=delimiter), [])


def _name_cells(names: list[str], cells: list[str]) -> Record:
    """The cells under their columns' names, those beyond the header under "".

    Cells with the same name are joined by line breaks, so that none is lost.
    """
    record: Record = dict(zip(names, cells, strict=False))
    if len(record) < len(cells):
        same = defaultdict[str, list[str]](list)
        for name, cell in zip_longest(names[: len(cells)], cells, fillvalue=""):
            same[name].append(cell)
        record = {name: "\n".join(values) for name, values in same.items()}
    return record


def _parse_json_lines(lines: Iterable[str], first: int = 1) -> Iterator[ParsedRow]:
    for number, line in enumerate(lines, first):
        if line.strip():
            yield _parse_json_row(number, line.rstrip("\r\n"))


def _parse_json_row(number: int, source: str) -> ParsedRow:
    if not is_utf8(source):
        return BrokenRow(number, NOT_TEXT, source)
    try:
        value = parse_json(source)
    except ValueError as error:
        return BrokenRow(number, f"is not JSON ({error})", source)
    return ParsedRow(number, _as_record(value), _find_half_pair(value, _has_escape(source)))


def _parse_json(lines: Iterable[str]) -> Iterator[ParsedRow]:
    lines = iter(lines)
    start = list[str]()
    for line in lines:
        start.append(line)
        if line.strip():
            break
    lines = chain(start, lines)
    if not "".join(start).lstrip().startswith("["):
        yield from _parse_json_lines(lines)
        return
    content = "".join(lines)
    try:
        values = parse_json(content)
    except ValueError as error:
        yield from _parse_broken_array(content, str(error))
        return
    is_decoded, has_escape = is_utf8(content), _has_escape(content)
    for number, value in enumerate(values, 1):
        # Only a file with an undecoded byte needs a look at each of its rows.
        if is_decoded or is_utf8(json.dumps(value, ensure_ascii=False)):
            yield ParsedRow(number, _as_record(value), _find_half_pair(value, has_escape))
        else:
            yield BrokenRow(number, NOT_TEXT, json.dumps(value, ensure_ascii=False))


def _parse_broken_array(content: str, reason: str) -> Iterator[ParsedRow]:
    """The rows of an array in JSON before the place where it is broken, and the rest as a bad one.

    Raises ValueError if there is no row before that place.
    """
    decoder = json.JSONDecoder()
    position, number = content.index("[") + 1, 1
    while True:
        gap = ARRAY_GAP.match(content, position)
        position = gap.end() if gap else position
        try:
            end = decoder.raw_decode(content, position)[1]
        except (ValueError, RecursionError):
            break
        yield _parse_json_row(number, content[position:end])
        position, number = end, number + 1
    if number == 1:
        raise ValueError(f"is not JSON ({reason})")
    if content[position:].strip() != "]":
        yield BrokenRow(number, f"is not JSON ({reason})", content[position:])


def _find_half_pair(value: Any, has_escape: bool) -> str:
    """The flaw of a value with half of a surrogate pair; empty if it has none.

    Only an escape can give it one, since the text in JSON could be decoded.
    """
    is_whole = not has_escape or is_utf8(json.dumps(value, ensure_ascii=False))
    return "" if is_whole else HALF_PAIR


def _has_escape(source: str) -> bool:
    return SURROGATE_ESCAPE.search(source) is not None


def parse_json(text: str) -> Any:
    """The value of a text in JSON. Raises ValueError with the reason if it has none."""
    # Few brackets cannot be nested deeply; most texts are parsed without a look at each of them.
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and json_depth(text) > MAX_JSON_DEPTH:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
    return json.loads(text)


def json_depth(text: str) -> int:
    r"""How deeply lists and objects are nested in a text in JSON. Brackets in strings do not count.

    >>> json_depth('{"a": [1, [2], "[[[["]}')
    3
    """
    depth = deepest = 0
    for bracket in BRACKET.finditer(text):
        if bracket[1]:
            depth += 1
            deepest = max(deepest, depth)
        elif bracket[2]:
            depth -= 1
    return deepest


def _as_record(value: Any) -> Record:
    """A JSON object as it is, and any other JSON value under "text"."""
    return value if isinstance(value, dict) else {"text": value}


def _parse_lines(lines: Iterable[str], first: int) -> Iterator[ParsedRow]:
    for number, line in enumerate(lines, first):
        text = line.rstrip("\r\n")
        if not is_utf8(line):
            yield BrokenRow(number, NOT_TEXT, text)
        else:
            yield ParsedRow(number, {"text": text})
