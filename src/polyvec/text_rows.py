"""The rows of text files: tables, JSON lines, and lines of plain text.

    .txt                one text per line; so does a file with any other name
    .jsonl  .ndjson     one JSON object or JSON string per line
    .json               one JSON array of them, or one per line
    .csv  .tsv          a table, whose first row names the columns

These rules hold for every caller:

1. A file is UTF-8, with or without a byte order mark, or UTF-16 with one.
2. The columns of a table are separated as `find_delimiter` says. A cell may be of any length, and
   may hold line breaks if it is quoted.
3. A blank line of a table or of JSON lines is not a row. A blank line of plain text is an empty
   text, so that the n-th result belongs to the n-th line.
4. A row has the number of the line on which it begins, counted from 1. In a JSON array it has its
   position in the array.

To support another kind of text file, add it to `SUFFIXES` and to `parse_text`.
"""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
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

SAMPLE_LINES = 200
"""Lines of a table from which its delimiter is found."""

MAX_CELL_CHARACTERS = 2**31 - 1
"""The largest limit that the csv module takes on every system. Its default is 131,072."""


MAX_JSON_DEPTH = 200
"""Deeper lists and objects are refused. Python parses about 990 levels, and writes fewer."""

BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|([\[{])|([\]}])', re.DOTALL)
"""A string of JSON, or the beginning or the end of a list or an object."""


class ParsedRow(NamedTuple):
    """A row as it stands in a file, before its columns are checked."""

    number: int
    record: Record | None
    """None if there is no way to tell what the row holds."""

    flaw: str = ""
    """The reason why the row cannot be used; empty if none is known."""


def find_encoding(first_bytes: bytes) -> str:
    """The encoding of a text file: UTF-16 if it begins with that byte order mark, else UTF-8."""
    is_utf16 = first_bytes[:2] in (b"\xff\xfe", b"\xfe\xff")
    return "utf-16" if is_utf16 else "utf-8-sig"


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

    Bytes that are not UTF-8 become surrogates, so that only their row is lost. Raises ValueError
    for bytes that are not UTF-16.
    """
    assert isinstance(file, io.BufferedReader), "peeking works on pipes too, seeking does not"
    encoding = encoding or find_encoding(file.peek(2))
    lines = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline=newline_mode(suffix))
    try:
        yield lines
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-16 ({error.reason})") from None
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
    columns, and for a broken JSON array.
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


def find_delimiter(lines: Collection[str], preferred: str = ",") -> str:
    r"""The character that separates the cells of a table, given its first lines.

    1. A first line `sep=;` names it, as Excel writes it.
    2. Otherwise it is the one of comma, tab, semicolon and bar with which all rows have the same
       number of cells, and more than one. If several do that, `preferred` comes first, then the
       others in the order above. A .tsv file prefers the tab, a .csv file the comma.
    3. If there is none, it is the one with which the first row has the most cells; again
       `preferred` comes first.

    >>> find_delimiter(["a;b\n", "1,5;2,5\n"]), find_delimiter(["text\n", "one, two\n"])
    (';', ',')
    """
    first = next(iter(lines), "")
    if _names_delimiter(first):
        return first[4]
    candidates = sorted(DELIMITERS, key=lambda delimiter: delimiter != preferred)
    widths = {delimiter: _count_cells(lines, delimiter) for delimiter in candidates}
    for delimiter in candidates:
        if len(set(widths[delimiter])) == 1 and widths[delimiter][0] > 1:
            return delimiter
    return max(candidates, key=lambda delimiter: widths[delimiter][:1] or [0])


def _names_delimiter(line: str) -> bool:
    return line[:4].lower() == "sep=" and len(line.rstrip("\r\n")) == 5


def _count_cells(lines: Collection[str], delimiter: str) -> list[int]:
    """The number of cells of each row that stands whole in the first lines of a table."""
    rows = csv.reader(lines, delimiter=delimiter)
    counts = []
    try:
        for cells in rows:
            # The row of the last line may go on below it.
            if rows.line_num >= SAMPLE_LINES and counts:
                break
            if cells:
                counts.append(len(cells))
    except csv.Error:
        # Parsing the whole table tells which row is wrong.
        pass
    return counts


def _parse_table(
    lines: Iterable[str], preferred: str, needed: Collection[str]
) -> Iterator[ParsedRow]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    lines = iter(lines)
    sample = list(islice(lines, SAMPLE_LINES))
    rows = csv.reader(chain(sample, lines), delimiter=find_delimiter(sample, preferred))
    if sample and _names_delimiter(sample[0]):
        next(rows)
    header = next((cells for cells in rows if cells), [])
    names = [name.strip() for name in header]
    check_columns(needed, names)
    while True:
        first = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield ParsedRow(first, None, str(error))
            continue
        if not is_utf8("".join(cells)):
            yield ParsedRow(first, None, "is not UTF-8")
        elif cells:
            same = len(cells) == len(names)
            flaw = "" if same else f"has {len(cells)} cells, the header {len(names)}"
            yield ParsedRow(first, _name_cells(names, cells), flaw)


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
        if not line.strip():
            continue
        if not is_utf8(line):
            yield ParsedRow(number, None, "is not UTF-8")
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            yield ParsedRow(number, None, f"is not JSON ({error})")
        else:
            yield ParsedRow(number, _as_record(value))


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
        raise ValueError(f"is not JSON ({error})") from None
    is_decoded = is_utf8(content)
    for number, value in enumerate(values, 1):
        # Only a file with an undecoded byte needs a look at each of its rows.
        if is_decoded or is_utf8(json.dumps(value, ensure_ascii=False)):
            yield ParsedRow(number, _as_record(value))
        else:
            yield ParsedRow(number, None, "is not UTF-8")


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
        if not is_utf8(line):
            yield ParsedRow(number, None, "is not UTF-8")
        else:
            yield ParsedRow(number, {"text": line.rstrip("\r\n")})
