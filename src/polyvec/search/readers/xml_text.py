"""The text of an XML file: of its elements, and of attributes that hold words.

The file is split by one regular expression that never goes back, and it is not parsed: time is
linear, source lines are known, no entity is expanded, and a file with an error is read like any
other.
"""

import re
from collections.abc import Iterator

from polyvec.search.readers.html_pages import ATTRIBUTES, unescape
from polyvec.search.readers.pieces import Piece

TOKEN = re.compile(
    rf"""<!--.*?(?:-->|\Z)
    |<!\[CDATA\[(?P<data>.*?)(?:\]\]>|\Z)
    |<\?.*?(?:\?>|\Z)
    |<!DOCTYPE[^\[>]*+(?:\[.*?(?:\]\s*+>|\Z)|>|\Z)
    |<(?P<closing>/?)(?P<tag>[^\s/<>!?=]++)(?P<attributes>{ATTRIBUTES})(?:>|\Z)
    |<[!/][^>]*+(?:>|\Z)
    |(?P<text>(?:[^<]++|<(?=[\s<>=]|\Z))++|<)""",
    re.DOTALL | re.VERBOSE,
)
"""A comment, a section of characters, an instruction, a declaration, a tag, or text."""

ATTRIBUTE = re.compile(r"(?<![^\s\"'])([^\s=\"'<>]++)\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)')")

WORDS = frozenset(
    "alt abstract caption comment content desc description label message name note placeholder "
    "summary text title tooltip value".split()
)
"""Attributes, without their prefixes, that hold words to read."""


def xml_pieces(source: str) -> Iterator[Piece]:
    """Yield pieces of text, each with the line of the source that it begins on."""
    line = 1
    gap, was_tag = "", False
    for token in TOKEN.finditer(source):
        text = token["text"] if token["data"] is None else token["data"]
        if text is not None and not text.strip():
            gap = "\n" if "\n" in text or gap == "\n" else " "
        elif text is not None:
            blank = len(text) - len(text.lstrip())
            words = unescape(text, collapse=True) if token["data"] is None else text
            yield line + text.count("\n", 0, blank), gap + words
            gap, was_tag = "", False
        elif token["tag"]:
            # Elements that follow one another directly are no parts of one sentence.
            gap = "\n" if was_tag else gap
            was_tag = True
            for words in _spell_attributes(token["attributes"]):
                yield line, f"\n{words}"
                gap = "\n"
        line += token[0].count("\n")


def _spell_attributes(attributes: str) -> Iterator[str]:
    if "=" not in attributes:
        return
    for name, double, single in ATTRIBUTE.findall(attributes):
        words = double or single
        if name.rpartition(":")[2].lower() in WORDS and words.strip():
            yield unescape(words, collapse=True).strip()
