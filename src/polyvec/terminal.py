"""Messages of verbs to people (notes), programs (lines of JSON) and shells (exit statuses)."""

import base64
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import date, time
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tqdm

CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
"""Replacements for control characters: a file's text must not steer the terminal."""


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
    r"""Return the text with a replacement character for every control but tab and newline.

    >>> plain("fox\x1b[2J\n")
    'fox�[2J\n'
    """
    return text.translate(CONTROLS)


def note(sentence: str) -> None:
    """Write a sentence for a person to standard error, if anyone can read it there."""
    with suppress(OSError):
        sys.stderr.write(f"polyvec: {plain(sentence)}\n")


def json_line(fields: Mapping[str, Any]) -> str:
    r"""Return one line of JSON for a program, in UTF-8 without escapes.

    >>> json_line({"text": "grüß"})
    '{"text": "grüß"}\n'
    """
    return json.dumps(fields, ensure_ascii=False, default=json_value) + "\n"


def json_value(value: Any) -> Any:
    """Return what stands in JSON for a value that JSON lacks, such as a date or an array.

    Dates and times are written as ISO 8601 says, and bytes in base64.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    # Scalars and arrays of NumPy, and scalars of Arrow.
    for name in ("tolist", "as_py"):
        convert = getattr(value, name, None)
        if callable(convert):
            return convert()
    return str(value)


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


def file_progress() -> "tqdm.tqdm":
    """Return a bar that counts files. It appears only on terminals, after half a second."""
    from tqdm import tqdm

    return tqdm(unit="file", delay=0.5, leave=False, disable=None)
