"""What verbs say to a person, and lines of JSON for programs."""

import json
import sys
from collections.abc import Mapping
from typing import Any

CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
"""A file's text must not steer the terminal it is shown on."""


def plain(text: str) -> str:
    r"""The text with a replacement character for every control but tab and newline.

    >>> plain("fox\x1b[2J\n")
    'fox�[2J\n'
    """
    return text.translate(CONTROLS)


def note(sentence: str) -> None:
    """Tell a person something, on standard error."""
    sys.stderr.write(f"polyvec: {plain(sentence)}\n")


def json_line(fields: Mapping[str, Any]) -> str:
    r"""One line for a program, in UTF-8 and not in escapes.

    >>> json_line({"text": "grüß"})
    '{"text": "grüß"}\n'
    """
    return json.dumps(fields, ensure_ascii=False, default=str) + "\n"
