"""The names and values of a JSON file, line by line, without its brackets and quotation marks.

The file is split into tokens and not parsed, so its lines are known, its depth does not matter, and
a file with comments or with an error is read like any other.
"""

import json
import re
from collections.abc import Iterator

from polyvec.search.readers.pieces import Piece, rows_left_out

TOKEN = re.compile(
    r"""(?P<string>"(?P<characters>(?:[^"\\]|\\.)*+)"?)
    |(?P<bracket>[\[{}\]])
    |(?P<colon>:)
    |(?P<comma>,)
    |(?P<bare>[^\s"\[{}\]:,]++)""",
    re.VERBOSE | re.DOTALL,
)


def json_pieces(source: str, *, max_rows: int) -> Iterator[Piece]:
    """Yield the names and values with their lines. Objects of a list stand in paragraphs.

    Raises Cut after `max_rows` objects of lists, since such a list is a table.
    """
    line, end, num_rows = 1, 0, 0
    opened: list[str] = []
    is_after_value = False
    for token in TOKEN.finditer(source):
        line += source.count("\n", end, token.start())
        first, end = line, token.end()
        line += token[0].count("\n")
        if token["colon"]:
            yield first, ": "
            is_after_value = False
        elif token["comma"]:
            if is_after_value:
                yield first, "\n"
            is_after_value = False
        elif bracket := token["bracket"]:
            if bracket in "[{":
                if bracket == "{" and opened and opened[-1] == "[":
                    num_rows += 1
                    if num_rows > max_rows:
                        raise rows_left_out(max_rows)
                yield first, "\n"
                opened.append(bracket)
            elif opened:
                is_row = opened.pop() == "{" and bool(opened) and opened[-1] == "["
                yield first, "\n\n" if is_row else "\n"
            is_after_value = False
        else:
            value = token["bare"] or _unescape(token["characters"])
            yield first, f" {value}" if is_after_value else value
            is_after_value = True


def _unescape(characters: str) -> str:
    if "\\" not in characters:
        return characters
    try:
        return json.loads(f'"{characters}"', strict=False)
    except ValueError:
        return characters
