"""What the verbs show: notes on standard error, and lines that steer no terminal."""

import json
import sys
from typing import Any

CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
"""A file's text must not steer the terminal it is shown on."""


def note(sentence: str) -> None:
    """Tell the user something that is no result."""
    sys.stderr.write(f"polyvec: {sentence.translate(CONTROLS)}\n")


def json_line(fields: dict[str, Any]) -> str:
    """An object as a line of JSON."""
    return json.dumps(fields, ensure_ascii=False) + "\n"
