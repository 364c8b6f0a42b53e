"""Front matter: the fields that stand before the text of a Markdown file."""

import re

FIELD = re.compile(r"\s*(?:#[^\n]*\n\s*)*(?:[\w\"'.-][^:=\n]*(?::(?:\s|\Z)|=)|\[)")
"""The first field of YAML or TOML, perhaps below comments."""

OPENING = re.compile(r"\A(---|\+\+\+)[ \t]*\r?\n")

CLOSING = {
    "---": re.compile(r"^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)", re.MULTILINE),
    "+++": re.compile(r"^\+\+\+[ \t]*\r?(?:\n|\Z)", re.MULTILINE),
}

MAX_CHARACTERS = 65_536
"""Front matter ends before this position."""


def front_matter_end(text: str) -> int:
    r"""The position at which the front matter ends; 0 if there is none.

    >>> front_matter_end("---\ntitle: Tea\n---\n# Brewing\n"), front_matter_end("---\nTea.\n---\n")
    (19, 0)
    """
    opening = OPENING.match(text)
    if opening is None:
        return 0
    closing = CLOSING[opening[1]].search(text, opening.end(), MAX_CHARACTERS)
    if closing is None:
        return 0
    is_empty = not text[opening.end() : closing.start()].strip()
    is_field = FIELD.match(text, opening.end(), closing.start())
    return closing.end() if is_empty or is_field else 0
