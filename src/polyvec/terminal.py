"""Messages of verbs to people (notes), programs (lines of JSON) and shells (exit statuses)."""

import json
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from enum import IntEnum
from io import TextIOWrapper
from typing import Any

from polyvec.progress import Bar, make_bar

SURROGATES = re.compile("[\ud800-\udfff]")

CONTROLS = [*range(32), *range(127, 160)]
"""Control characters, with which a file's text could steer the terminal."""

BIDIRECTIONAL = [0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Characters that change the direction of what follows (Unicode's Bidi_Control): with them a name
can look like another name."""

LINE_BREAKS = [0x2028, 0x2029]

ESCAPES = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in [*CONTROLS, *BIDIRECTIONAL, *LINE_BREAKS]
}
TEXT_ESCAPES = {code: escape for code, escape in ESCAPES.items() if chr(code) not in "\n\t"}
"""What is shown in their places, in a name and in a text of several lines."""


class ExitStatus(IntEnum):
    """The exit statuses of all verbs, each with its meaning. A verb that returns None is done."""

    DONE = 0, "The verb did all of its work."
    INCOMPLETE = (
        1,
        "The verb did its work, but it set rows or files aside, it found nothing, or a comparison "
        "failed.",
    )
    REFUSED = (
        2,
        "The verb did not do its work: the usage or the input is wrong, or an extra is missing.",
    )
    INTERRUPTED = 130, "Ctrl-C interrupted the verb."

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "ExitStatus":
        """Return the member: a number that also has a `meaning`."""
        status = int.__new__(cls, value)
        status._value_ = value
        status.meaning = meaning
        return status


def plain(text: str) -> str:
    r"""Return the text with a visible escape for every control character but tab and newline.

    >>> plain("fox\x1b[2J\n")
    'fox\\x1b[2J\n'
    """
    return text.translate(TEXT_ESCAPES)


def plain_line(text: str) -> str:
    r"""Return a name or a sentence on one line, with a visible escape for control characters.

    >>> plain_line("invoice\u202efdp.exe\n")
    'invoice\\u202efdp.exe\\x0a'
    """
    return text.translate(ESCAPES)


def note(sentence: str) -> None:
    """Write a sentence for a person to standard error, if anyone can read it there."""
    with suppress(OSError):
        sys.stderr.write(f"polyvec: {plain_line(sentence)}\n")


def show_every_character() -> None:
    """Write the characters that the terminal's encoding lacks as escapes. Raise no error for them.

    The terminals of Windows and some locales lack most characters, and the name of a file may hold
    bytes that are not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def json_line(fields: Mapping[str, Any]) -> str:
    r"""Return one line of JSON for a program that reads standard output.

    JSON is UTF-8: a character is only written as it is if that is what standard output does.

    >>> json_line({"text": "grüß"})
    '{"text": "grüß"}\n'
    """
    line = json.dumps(fields, ensure_ascii=False, default=str) + "\n"
    if line.isascii():
        return line
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-")
    # Halves of surrogate pairs have no UTF-8, but JSON has escapes for them.
    if encoding in ("utf-8", "utf8") and not SURROGATES.search(line):
        return line
    return json.dumps(fields, default=str) + "\n"


def shorten(text: str, size: int) -> str:
    """Return the beginning of a text on one line, cut between words where possible.

    The result has at most `size` + 1 characters.

    >>> shorten("one  two three", 9)
    'one two …'
    """
    line = " ".join(text[: 4 * size].split())
    if len(line) <= size:
        return line
    cut = line[: size - 1]
    head, space, _ = cut.rpartition(" ")
    return (head if space and 2 * len(head) > size else cut) + " …"


def file_progress(total: int | None = None) -> AbstractContextManager[Bar]:
    """Return a bar that counts files on a terminal."""
    return make_bar("file", total)
