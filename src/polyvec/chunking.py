"""Text to chunks: spans of characters that are small enough to embed and to show.

1. Cut at Markdown headings; no chunk crosses one.
2. Cut each section into paragraphs, a paragraph that is too large into sentences, a sentence into
   words, and a word into characters.
3. Join neighbours again while they fit, so that chunks are as large as allowed.

Chunks lie end to end and cover the whole text, including white space.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import sentencex

from polyvec.texts import REPLACEMENT, SURROGATES, is_inside_pair

PARAGRAPH = re.compile(r"(?:\r?\n[^\S\n]*){2,}")
"""Blank lines, which belong to the paragraph before them."""

LINE = re.compile(r"\n")
THAI = re.compile(r"(?<=[\u0e00-\u0eff])\s+(?=[\u0e00-\u0eff])")
"""Thai and Lao have no full stop: a space between two of their letters ends a sentence."""

SENTENCE_TERMINALS = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a"
    "\u104b\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945"
    "\u1aa8-\u1aab\u1b4e\u1b4f\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d-\u1b7f\u1c3b\u1c3c\u1c7e\u1c7f"
    "\u203c\u203d\u2047-\u2049\u2cf9-\u2cfb\u2e2e\u2e3c\u2e53\u2e54\u2e60\u2e61\u3002\ua4ff"
    "\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0"
    "\uaaf1\uabeb\ufe12\ufe15\ufe16\ufe56\ufe57\uff01\uff0e\uff1f\uff61\U00010a56\U00010a57"
    "\U00010f55-\U00010f59\U00010f86-\U00010f89\U00011047\U00011048\U000110be-\U000110c1"
    "\U00011141-\U00011143\U000111c5\U000111c6\U000111cd\U000111de\U000111df\U00011238"
    "\U00011239\U0001123b\U0001123c\U000112a9\U000113d4\U000113d5\U0001144b\U0001144c\U000115c2"
    "\U000115c3\U000115c9-\U000115d7\U00011641\U00011642\U0001173c-\U0001173e\U00011944"
    "\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c\U00011c41\U00011c42\U00011ef7\U00011ef8"
    "\U00011f43\U00011f44\U00016a6e\U00016a6f\U00016af5\U00016b37\U00016b38\U00016b44\U00016d6e"
    "\U00016d6f\U00016e98\U0001bc9f\U0001da88"
)
"""Unicode's Sentence_Terminal characters, as in a pattern's set. Those of ASCII are left to the
sentence splitter, which knows abbreviations; so are U+2024 and U+FE52, which look like ASCII's full
stop and also stand within a sentence."""

CLOSING = "\"'\u2019\u201d\u00bb\u203a\u300d\u300f\u3009\u300b\u3011)\\]\uff09"
ENDING = f"[{SENTENCE_TERMINALS}!?.\u2026{CLOSING}]"
"""Marks that end a sentence, and the quotation marks and brackets that belong to it."""

SENTENCE_ENDS = (
    # A run of marks before white space. Within a line of letters, as in Chinese and Japanese, the
    # sentence splitter finds them. The pattern begins only where a run begins, and gives back none
    # of it, so that every mark is looked at a few times at most.
    re.compile(f"(?<!{ENDING})(?={ENDING}*[{SENTENCE_TERMINALS}]){ENDING}++(?=\\s|$)"),
    # Khmer needs no space behind its full stop; U+17D4 U+179B U+17D4 is "etc.".
    re.compile("(?<![\u17d4\u17d5])[\u17d4\u17d5]++(?=[\u1780-\u17b3])(?!\u179b\u17d4)"),
    # Tibetan's marks are not in Unicode's list, since a single one also separates clauses.
    re.compile("[\u0f0d-\u0f12\u0f14]++(?: ++[\u0f0d-\u0f12\u0f14]++)*+"),
    # A semicolon behind a Greek word is a question mark. Behind one letter it may be a formula's.
    re.compile("[\u0370-\u03ff\u1f00-\u1fff]{2}[\"'\u2019\u201d\u00bb)]*+[;\u037e](?=\\s|$)"),
)
"""Full stops and question marks of all scripts, beside those that the sentence splitter knows."""

WORD = re.compile(r"\s+")
SPACE = re.compile(r"\s*")

HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*)$", re.MULTILINE)
CLOSING_MARKS = re.compile(r"(?:^|[ \t])#+$")
"""Marks that may stand at the end of a heading, as in `## Tea ##`."""

FENCE = re.compile(r"^ {0,3}(```+|~~~+)", re.MULTILINE)

WINDOW_CHARACTERS = 4_000
"""A longer text is split into sentences a window at a time. The sentence splitter takes quadratic
time for quotation marks that are never closed."""

MAX_MEASURED_CHARACTERS = 100_000
"""A longer text is cut without being measured, because measuring may take much memory."""

ZERO_WIDTH_JOINER = "\u200d"
"""Joins the parts of one emoji."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The characters [start, end) of a text, and the headings above them."""

    start: int
    end: int
    headings: tuple[str, ...] = ()


def split_text(
    text: str, max_size: int, *, size: Callable[[str], int] = len, markdown: bool = False
) -> list[Chunk]:
    r"""Cut a text into chunks of at most `max_size`, in order, without gaps or overlap.

    An empty text has no chunks. `size` measures a string: in characters by default, or for example
    with a tokenizer's count without special tokens. It should be additive, because the size of
    joined parts is taken to be their sum. With `markdown`, every heading starts a new chunk, and
    each chunk has the titles of the headings above it. Raises ValueError if `max_size` is below 1.

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


def split_sentences(text: str, lang: str = "en") -> list[tuple[int, int]]:
    """The sentences of a text as characters [start, end), each with the white space after it.

    The sentences lie end to end. The end of a line also ends a sentence. `lang` (ISO 639-1) only
    decides which abbreviations are known; full stops of all scripts are known. A text of white
    space is one sentence, and an empty text has none.

    >>> [text := "Dr. Li left at 5 p.m. on Monday. 然后呢？没有了。", split_sentences(text)][1]
    [(0, 33), (33, 37), (37, 41)]
    """
    edges = [0, *_sentence_ends(text, lang), len(text)]
    return [(start, end) for start, end in pairwise(edges) if start < end]


def _sentence_ends(text: str, lang: str) -> list[int]:
    # White space belongs to the sentence before it, and at the start to the first one.
    blank = _skip_space(text, 0)
    ends = set[int]()
    patterns = (LINE,) if text.isascii() else (LINE, THAI, *SENTENCE_ENDS)
    marks = ((match.end() for match in pattern.finditer(text)) for pattern in patterns)
    for found in (_split_windows(text, lang), *marks):
        moved = blank
        for end in found:
            # Ends within the same white space are one end, which is looked for once.
            if end > moved:
                moved = _skip_space(text, end)
                ends.add(moved)
    return sorted(end for end in ends if end < len(text))


def _split_windows(text: str, lang: str) -> Iterator[int]:
    """Yield the ends of sentences that the sentence splitter finds, ascending.

    A window begins where the last sentence of the window before it begins, or where that window
    ends if it is inside of one sentence. The end of a window ends no sentence.
    """
    # It cannot read halves of characters. One character replaces one, so that positions stay valid.
    readable = SURROGATES.sub(REPLACEMENT, text)
    start = 0
    while start < len(text):
        window = readable[start : start + WINDOW_CHARACTERS]
        is_last = start + WINDOW_CHARACTERS >= len(text)
        # Its compiled part has no stubs.
        sentences = sentencex.get_sentence_boundaries(lang, window)  # pyright: ignore
        ends = [end for sentence in sentences if (end := sentence["end_index"]) < len(window)]
        yield from (start + end for end in ends)
        start += len(window) if is_last or not ends else ends[-1]


def _skip_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    assert match is not None, "the pattern also matches an empty string"
    return match.end()


def _paragraph_ends(text: str) -> Iterator[int]:
    return (match.end() for match in PARAGRAPH.finditer(text))


def _word_ends(text: str) -> Iterator[int]:
    return (match.end() for match in WORD.finditer(text))


CUTS = (_paragraph_ends, lambda text: _sentence_ends(text, "en"), _word_ends)
"""Functions that return where a text may be cut, the best places first."""

Cuts = tuple[Callable[[str], Iterable[int]], ...]


def _sections(text: str) -> Iterator[Chunk]:
    """Yield each heading with its text. A heading without text belongs to the next section."""
    start = body = 0
    path: list[tuple[int, str]] = []
    for heading in _headings(text):
        if text[body : heading.start()].strip():
            yield Chunk(start, heading.start(), tuple(title for _, title in path))
            start = heading.start()
        level = len(heading[1])
        path = [(above, title) for above, title in path if above < level]
        path.append((level, CLOSING_MARKS.sub("", heading[2].strip()).rstrip()))
        body = heading.end()
    yield Chunk(start, len(text), tuple(title for _, title in path))


def _headings(text: str) -> Iterator[re.Match[str]]:
    """Yield the headings outside fenced code, in which `#` starts a comment."""
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
    cuts: Cuts,
) -> Iterator[tuple[int, int, int]]:
    """Yield spans of [start, end) with their sizes, each as large as allowed."""
    if start == end:
        return
    if end - start <= MAX_MEASURED_CHARACTERS:
        whole = size(text[start:end])
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
    cuts: Cuts,
) -> Iterator[tuple[int, int, int]]:
    """Yield spans of [start, end) that are small enough, cut at the best possible places."""
    if not cuts:
        middle = _character_boundary(text, start, end)
        yield from _pack(text, start, middle, max_size, size, ())
        yield from _pack(text, middle, end, max_size, size, ())
        return
    positions = (start + position for position in cuts[0](text[start:end]))
    for left, right in pairwise(chain([start], positions, [end])):
        yield from _pack(text, left, right, max_size, size, cuts[1:])


def _character_boundary(text: str, start: int, end: int) -> int:
    """The middle of [start, end), moved so that it does not split off an accent or emoji part."""
    middle = (start + end) // 2
    for position in range(middle, min(end, middle + 32)):
        inside = unicodedata.combining(text[position]) or is_inside_pair(text, position)
        if not inside and ZERO_WIDTH_JOINER not in text[position - 1 : position + 1]:
            return position
    return middle
