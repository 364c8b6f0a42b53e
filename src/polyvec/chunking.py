"""Text -> chunks: character spans of one text, small enough to embed and to show.

1. Cut at Markdown headings, which a chunk never crosses.
2. Cut each section into paragraphs, a paragraph that is too large into sentences, a sentence into
   words, a word into characters.
3. Join neighbours again while they fit, so that chunks are as large as allowed.

Chunks lie end to end and cover the whole text, white space included.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

PARAGRAPH = re.compile(r"(?:\r?\n[^\S\n]*){2,}")
"""Blank lines belong to the paragraph before them."""

SENTENCE = re.compile(
    # European, Arabic, Armenian, Ethiopic, Devanagari, Tibetan, Burmese and Khmer full stops end
    # a sentence before a space, East Asian ones always, and so does a line in all of them.
    "[.!?\u2026\u061f\u06d4\u0589\u1362\u1367\u0964\u0965\u0f0d\u104b\u17d4]+[\"'\u201d\u2019\u00bb)\\]]*\\s+"
    "|[\u3002\uff01\uff1f\uff61]+[\u300d\u300f\u201d\uff09]*\\s*"
    "|\\n\\s*"
)

WORD = re.compile(r"\s+")

CUTS = (PARAGRAPH, SENTENCE, WORD)
"""Where a text may be cut, the best places first."""

HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*\r?$", re.MULTILINE)
FENCE = re.compile(r"^ {0,3}(```+|~~~+)", re.MULTILINE)

JOINER = "\u200d"
"""Holds the parts of one emoji together."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The characters [start, end) of a text, and the headings they stand under."""

    start: int
    end: int
    headings: tuple[str, ...] = ()


def split_text(
    text: str, max_size: int, *, size: Callable[[str], int] = len, markdown: bool = False
) -> list[Chunk]:
    r"""Chunks of at most `max_size`, in order, without gap or overlap; none for an empty text.

    `size` measures a string: characters by default, or a tokenizer's count without its special
    tokens. It should be additive; a chunk joined of parts is taken to be as large as their sum.
    With `markdown`, headings start new chunks and are kept with each.

    >>> text = "# Tea\nBoil water. Wait.\n# Coffee\nGrind beans."
    >>> for chunk in split_text(text, 20, markdown=True):
    ...     print(chunk.headings, repr(text[chunk.start : chunk.end]))
    ('Tea',) '# Tea\nBoil water. '
    ('Tea',) 'Wait.\n'
    ('Coffee',) '# Coffee\n'
    ('Coffee',) 'Grind beans.'
    """
    if max_size < 1:
        raise ValueError(f"max_size is {max_size}, must be at least 1")
    chunks = []
    for section in _sections(text) if markdown else [Chunk(0, len(text))]:
        spans = _pack(text, section.start, section.end, max_size, size, CUTS)
        chunks.extend(Chunk(start, end, section.headings) for start, end, _ in spans)
    return chunks


def _sections(text: str) -> Iterator[Chunk]:
    """Headings with what follows them. A heading alone goes with the next one."""
    start = body = 0
    path: list[tuple[int, str]] = []
    for heading in _headings(text):
        if text[body : heading.start()].strip():
            yield Chunk(start, heading.start(), tuple(title for _, title in path))
            start = heading.start()
        level = len(heading[1])
        path = [(above, title) for above, title in path if above < level]
        path.append((level, heading[2]))
        body = heading.end()
    yield Chunk(start, len(text), tuple(title for _, title in path))


def _headings(text: str) -> Iterator[re.Match[str]]:
    """Headings outside fenced code, where `#` is a comment."""
    fences = [(match.start(), match[1]) for match in FENCE.finditer(text)]
    code: list[tuple[int, int]] = []
    opened: tuple[int, str] | None = None
    for position, mark in fences:
        if opened is None:
            opened = (position, mark)
        elif mark.startswith(opened[1]):
            code.append((opened[0], position))
            opened = None
    if opened is not None:
        code.append((opened[0], len(text)))
    blocks = iter(code)
    block = next(blocks, None)
    for heading in HEADING.finditer(text):
        while block is not None and block[1] < heading.start():
            block = next(blocks, None)
        if block is None or heading.start() < block[0]:
            yield heading


def _pack(
    text: str,
    start: int,
    end: int,
    max_size: int,
    size: Callable[[str], int],
    cuts: tuple[re.Pattern[str], ...],
) -> Iterator[tuple[int, int, int]]:
    """Spans of [start, end), with their sizes, as large as fits."""
    whole = size(text[start:end])
    if start == end:
        return
    if whole <= max_size or end - start == 1:
        yield start, end, whole
        return
    held: tuple[int, int, int] | None = None
    for span in _cut(text, start, end, max_size, size, cuts):
        if held is not None and held[2] + span[2] <= max_size:
            held = (held[0], span[1], held[2] + span[2])
        else:
            if held is not None:
                yield held
            held = span
    if held is not None:
        yield held


def _cut(
    text: str,
    start: int,
    end: int,
    max_size: int,
    size: Callable[[str], int],
    cuts: tuple[re.Pattern[str], ...],
) -> Iterator[tuple[int, int, int]]:
    """Spans of [start, end) that each fit, cut at the best places there are."""
    if not cuts:
        middle = _character_boundary(text, start, end)
        yield from _pack(text, start, middle, max_size, size, ())
        yield from _pack(text, middle, end, max_size, size, ())
        return
    edges = [start, *(match.end() for match in cuts[0].finditer(text, start, end)), end]
    for left, right in pairwise(edges):
        yield from _pack(text, left, right, max_size, size, cuts[1:])


def _character_boundary(text: str, start: int, end: int) -> int:
    """The middle of [start, end), moved so that no accent or emoji part is left behind."""
    middle = (start + end) // 2
    for position in range(middle, min(end, middle + 32)):
        joined = (
            unicodedata.combining(text[position]) or JOINER in text[position - 1 : position + 1]
        )
        if not joined:
            return position
    return middle
