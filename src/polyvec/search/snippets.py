"""Snippets: the few lines of a passage that a terminal shows, with the answer marked.

Positions are characters of the passage, so that the passage itself is never changed.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise

from polyvec.search.lexical import normalise
from polyvec.terminal import plain

SNIPPET_LINES = 3
"""The number of lines that a snippet has at most."""

Span = tuple[int, int]
"""Characters [start, end)."""

BOLD, GREEN, DIM, RESET = "\x1b[1m", "\x1b[32m", "\x1b[2m", "\x1b[0m"


def show_snippet(
    text: str, sentence: Span | None, words: Iterable[str], *, width: int, is_coloured: bool
) -> list[str]:
    """The lines of a passage around a sentence, each at most `width` columns wide.

    The sentence is green and the words are bold. Without a sentence, the lines are those around the
    first word, or else the first lines.
    """
    lines = list(wrap_lines(text, width))
    marked = find_words(text, words)
    start = sentence[0] if sentence else marked[0][0] if marked else 0
    middle = next((i for i, (_, end) in enumerate(lines) if start < end), 0)
    first = max(0, min(middle - 1, len(lines) - SNIPPET_LINES))
    shown = lines[first : first + SNIPPET_LINES]
    if not is_coloured:
        return [plain(text[start:end]) for start, end in shown]
    return [_mark(text, line, sentence or (0, 0), marked) for line in shown]


def wrap_lines(text: str, width: int) -> Iterator[Span]:
    """The lines of a text as it is shown in `width` columns, without blank lines.

    A line is broken between words where possible. Wide characters take two columns.

    >>> [("one two three"[start:end]) for start, end in wrap_lines("one two three", 8)]
    ['one two', 'three']
    """
    start = 0
    for line in text.splitlines(keepends=True):
        yield from _wrap(text, start, start + len(line), width)
        start += len(line)


def _wrap(text: str, start: int, end: int, width: int) -> Iterator[Span]:
    """The parts of one line, without the white space around them."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    column, first, space = 0, start, None
    position = start
    while position < end:
        column += _columns(text[position])
        if column > width and position > first:
            cut = space if space is not None else position
            yield first, cut
            first = cut
            while first < end and text[first].isspace():
                first += 1
            position, column, space = first, 0, None
            continue
        if text[position].isspace():
            space = position
        position += 1
    if first < end:
        yield first, end


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def find_words(text: str, words: Iterable[str]) -> list[Span]:
    """Where a text has one of the normalised words, in order and without overlap.

    >>> find_words("Two CAFÉS, one café", ["cafe"])
    [(15, 19)]
    """
    spans = []
    wanted = set(words)
    for run in _letter_runs(text):
        letters = text[slice(*run)]
        if normalise(letters) in wanted:
            spans.append(run)
        elif not letters.isascii():
            # In scripts without spaces, a word stands inside a longer run of letters.
            spans += _find_inside(text, run, wanted)
    return spans


def _letter_runs(text: str) -> Iterator[Span]:
    """The longest runs of letters and digits, with their marks and invisible characters."""
    start = 0
    for is_word, run in groupby(text, _is_word_character):
        end = start + sum(1 for _ in run)
        if is_word:
            yield start, end
        start = end


def _is_word_character(character: str) -> bool:
    if character.isascii():
        return character.isalnum()
    return unicodedata.category(character)[0] in "LMN" or unicodedata.category(character) == "Cf"


def _find_inside(text: str, run: Span, words: Iterable[str]) -> list[Span]:
    spans: list[Span] = []
    for word in words:
        if not word.isascii() and unicodedata.category(word[0]) == "Lo":
            spans += [(i, i + len(word)) for i in _positions(text, word, run)]
    kept: list[Span] = []
    for span in sorted(spans):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept


def _positions(text: str, word: str, run: Span) -> Iterator[int]:
    position = text.find(word, *run)
    while position >= 0:
        yield position
        position = text.find(word, position + len(word), run[1])


def _mark(text: str, line: Span, sentence: Span, words: Sequence[Span]) -> str:
    """The line with escape sequences around its part of the sentence and around words."""
    edges = {*line}
    for span in [sentence, *words]:
        edges.update(edge for edge in span if line[0] < edge < line[1])
    pieces = []
    for start, end in pairwise(sorted(edges)):
        style = GREEN if sentence[0] <= start < sentence[1] else ""
        style += BOLD if any(first <= start < last for first, last in words) else ""
        piece = plain(text[start:end])
        pieces.append(f"{style}{piece}{RESET}" if style else piece)
    return "".join(pieces)


def show_head(score: str, place: str, *, is_coloured: bool) -> str:
    """The line above a passage: its score, and where it stands."""
    if not is_coloured:
        return plain(f"{score}  {place}")
    return f"{DIM}{score}{RESET}  {BOLD}{plain(place)}{RESET}"
