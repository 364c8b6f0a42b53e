"""Messages of verbs to people (notes), programs (lines of JSON) and shells (exit statuses)."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
    return json.dumps(fields, ensure_ascii=False, default=str) + "\n"


def is_coloured() -> bool:
    """Whether standard output is a terminal that shows colours, and NO_COLOR does not forbid them."""
    environment = os.environ
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return sys.stdout is not None and sys.stdout.isatty()


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


def ask(question: str) -> bool | None:
    """Ask a person on the terminal. Return None if nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    # The line may hold a progress bar.
    sys.stderr.write(f"\r\x1b[Kpolyvec: {plain(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def byte_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on terminals, and a function to show how many of how many are done.

    The bar appears after half a second.
    """
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, delay=0.5, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def file_progress() -> "tqdm.tqdm":
    """Return a bar that counts files. It appears only on terminals, after half a second."""
    from tqdm import tqdm

    return tqdm(unit="file", delay=0.5, leave=False, disable=None)
