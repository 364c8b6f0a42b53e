"""Lines of the pages of a PDF: words that are cut at their ends, and lines that pages repeat."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from polyvec.search.readers.pieces import Piece

CUT_WORD = re.compile(
    r"(?<!\w)(\w++)(?:[\ufffe\x02]\s*+|[-\u2010\u00ad][^\S\n]*+\r?\n\s*+)(?=(\w++))"
)
"""A part of a word at the end of a line. PDFium writes U+FFFE for a hyphen that ends one."""

COMPOUND = re.compile(r"(?<!\w)(\w++)[-\u2010](?=(\w++))")

INVISIBLE = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff\u00ad]")

EDGE_LINES = 3
"""Furniture is looked for in this many lines at the top and at the bottom of a page."""

MIN_PAGES = 3
"""A line is furniture if it stands on this many pages, and on most."""

MAX_LINE_CHARACTERS = 200
"""A longer line is no furniture."""

NUMBER = re.compile(r"\d{1,6}")

MAX_NUMBERS = 4
"""A line with more numbers is no furniture, but a row of a table."""


def join_words(pages: Sequence[Piece]) -> list[Piece]:
    """The pages with the words whole that are cut at the ends of lines.

    The hyphen goes, unless it belongs to the word: the next part begins with a capital or a digit,
    or the document writes the word with a hyphen elsewhere, and never without.
    """
    whole = "\n".join(text for _, text in pages)
    if not CUT_WORD.search(whole):
        return [(number, _clean(text)) for number, text in pages]
    compounds = {f"{first}-{second}".lower() for first, second in COMPOUND.findall(whole)}
    words = set(re.findall(r"\w+", whole.lower()))

    def join(match: re.Match[str]) -> str:
        left, right = match.groups()
        is_name = right[0].isdigit() or (right[0].isupper() and not left.isupper())
        is_compound = f"{left}-{right}".lower() in compounds and (left + right).lower() not in words
        return f"{left}-" if is_name or is_compound or left[-1].isdigit() else left

    return [(number, _clean(CUT_WORD.sub(join, text))) for number, text in pages]


def _clean(text: str) -> str:
    return INVISIBLE.sub(" ", text.replace("\u00ad", "")).replace("\r\n", "\n")


def drop_furniture(pages: Sequence[Piece]) -> Iterator[Piece]:
    """Yield the pages without the lines that repeat at the edges of most pages.

    Such a line may count the pages. It is kept where it stands first, and on a page that has no
    other line, so that no word is lost. Left and right pages may have lines of their own.
    """
    split = [(number, text.split("\n")) for number, text in pages]
    totals = Counter(number % 2 for number, _ in split)
    counts, by_side = Counter[str](), Counter[tuple[int, str]]()
    for number, lines in split:
        keys = {key for place in _edges(lines) for key in _keys(lines[place], number)}
        counts.update(keys)
        by_side.update((number % 2, key) for key in keys)
    furniture = {key for key, count in counts.items() if MIN_PAGES <= count > len(split) / 2}
    furniture |= {
        key for (side, key), count in by_side.items() if MIN_PAGES <= count > totals[side] / 2
    }
    seen = set[str]()
    for number, lines in split:
        dropped = set[int]()
        for place in _edges(lines):
            found = _keys(lines[place], number) & furniture
            if found & seen:
                dropped.add(place)
            seen |= found
        kept = [line for place, line in enumerate(lines) if place not in dropped]
        yield number, "\n".join(kept if any(line.strip() for line in kept) else lines)


def _edges(lines: Sequence[str]) -> list[int]:
    """The places of the first and the last lines that are not blank."""
    places = [place for place, line in enumerate(lines) if line.strip()]
    return sorted({*places[:EDGE_LINES], *places[-EDGE_LINES:]})


def _keys(line: str, page: int) -> set[str]:
    """What a line has in common with the same line on other pages.

    One of its numbers may be that of the page, or differ from it by the same amount everywhere.
    """
    line = " ".join(line.split())
    numbers = list(NUMBER.finditer(line))
    if not line or len(line) > MAX_LINE_CHARACTERS or len(numbers) > MAX_NUMBERS:
        return set()
    counting = {
        f"{line[: number.start()]}\0{int(number[0]) - page}\0{line[number.end() :]}"
        for number in numbers
    }
    return {line, *counting}
