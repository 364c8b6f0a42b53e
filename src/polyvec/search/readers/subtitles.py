"""What is said in subtitles (SubRip and WebVTT), without times, numbers and marks."""

import re
from collections.abc import Iterator

from polyvec.search.readers.pieces import Piece

TIMES = re.compile(r"\s*(?:\d+:)?\d+:\d+[,.]\d+\s*-->")

MARKS = re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>|</?[a-z]>|<\d[\d:.]{0,20}>|\{\\[^{}\n]{0,200}\}")
"""Tags as `<i>` and `<v Anna>`, times of words, and places on the screen as `{\\an8}`."""

SPEAKER = re.compile(r"<v[. ]([^<>\n]{1,200})>")
"""The speaker of a line in WebVTT."""

HIDDEN_BLOCKS = ("WEBVTT", "NOTE", "STYLE", "REGION")
"""Blocks of WebVTT begin with one of these words if nothing of them is shown."""


def subtitle_pieces(source: str) -> Iterator[Piece]:
    """Yield the lines that are shown, with their numbers in the file."""
    lines = source.split("\n")
    is_hidden = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        is_block_start = number == 1 or not lines[number - 2].strip()
        if is_block_start:
            is_hidden = text.split(" ")[0] in HIDDEN_BLOCKS
        follows = lines[number] if number < len(lines) else ""
        is_name = is_block_start and TIMES.match(follows)
        if text and not (is_hidden or is_name or TIMES.match(text)):
            spoken = MARKS.sub("", SPEAKER.sub(r"\1: ", text)).strip()
            if spoken:
                yield number, spoken + "\n"
