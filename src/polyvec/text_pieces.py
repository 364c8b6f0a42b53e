"""Pieces of a long text that can be tokenised one after another, in bounded memory.

A tokenizer first normalises a text and then splits it into words. Neither step looks beyond a word
that ends before a white space, in the tokenizers that `find_cuts` accepts. The tokens of a text
that is cut there are therefore those of its pieces:

1. The cut is before a white space and after a letter, a digit or a punctuation mark. No normaliser
   composes, reorders or deletes across it: a white space never joins the character before it, and
   the character before it does not turn into white space or into nothing.
2. The piece behind the cut begins with that white space, so a splitter that marks the beginning of
   a word, such as Metaspace, puts the same mark there as in the whole text.

A stretch without such a place is cut only when it is longer than `MAX_WORD_CHARACTERS`. It is then
read as if a white space stood there. This is a definition, not an approximation: where a text is
cut depends on the text before the cut alone.
"""

import json
import re
import unicodedata
from typing import Any

import tokenizers

PIECE_CHARACTERS = 16_384
"""Characters of a piece, measured in the normal form NFKC."""

MAX_WORD_CHARACTERS = 131_072
"""Characters of the longest stretch that is never cut, measured in NFKC.

XLM-RoBERTa's longest token has 16 characters, so 8,192 tokens fit.
"""

MEASURED_CHARACTERS = 1_024
"""Characters that are measured at once. One character may become 18 in NFKC."""

LOCAL_NORMALISERS = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"}
    | {"StripAccents"}
)
"""Normalisers that change no character because of one beyond a white space."""

LOCAL_SPLITTERS = frozenset({"BertPreTokenizer", "Digits", "Metaspace", "Punctuation"})
"""Splitters that look no further than a word, once white space has split the text."""

SPACE_SPLITTERS = {
    "BertPreTokenizer": " \t\n\u3000",
    "Metaspace": " ",
    "Whitespace": " \t\n\u3000",
    "WhitespaceSplit": " \t\n\u3000",
}
"""Splitters that may come first, and the white space at which they always split."""

PUNCTUATION = (
    r"!-/:-@\[-`{-~"
    "\u060c\u061f\u06d4\u0964\u0965\u2019\u201d\u2026\u3001\u3002\u300d\u300f\uff01\uff09\uff0c\uff1a\uff1b\uff1f"
)
"""Punctuation marks after which a text may be cut, as in a pattern's set."""

PREPENDED = (
    "\u0d4e\U000111c2\U000111c3\U0001193f\U00011941"
    "\U00011a3a\U00011a84-\U00011a89\U00011d46\U00011f02"
)
"""Letters that form one grapheme cluster with the character after them, even with a white space.

A `Precompiled` normaliser reads clusters.
"""


def find_cuts(core: tokenizers.Tokenizer) -> str:
    """The white space before which a text may be cut; "" if the tokenizer is of no known kind."""
    splitters = _components(core.pre_tokenizer, "pretokenizers")
    if not splitters or any(one["type"] not in LOCAL_SPLITTERS for one in splitters[1:]):
        return ""
    if any(one["type"] == "Metaspace" and not one.get("split", True) for one in splitters):
        return ""
    if not all(map(_is_local, _components(core.normalizer, "normalizers"))):
        return ""
    # A token that takes the white space behind it, or that contains some, lies across a cut.
    for token in core.get_added_tokens_decoder().values():
        if token.rstrip or re.search(r"\s", token.content):
            return ""
    return SPACE_SPLITTERS.get(splitters[0]["type"], "")


def find_piece_end(text: str, start: int, cuts: str) -> int:
    """The end of the piece of a text that begins at `start`.

    `cuts` are those of `find_cuts`.
    """
    near = _measure(text, start, PIECE_CHARACTERS)
    if near == len(text):
        return near
    if cuts:
        last = _pattern(cuts, last=True).match(text, start + 1, near)
        if last is not None:
            return last.end()
    far = _measure(text, near, MAX_WORD_CHARACTERS - PIECE_CHARACTERS)
    if cuts:
        first = _pattern(cuts, last=False).search(text, near, far)
        if first is not None:
            return first.start()
    if far == len(text):
        return far
    last = _pattern(" ", last=True).match(text, near, far)
    return _character_start(text, far) if last is None else last.end()


def measure(text: str) -> int:
    """The number of characters of a text in the normal form NFKC, if that has more."""
    return len(text) if text.isascii() else max(len(text), len(unicodedata.normalize("NFKC", text)))


def _measure(text: str, start: int, size: int) -> int:
    """The end of the characters from `start` on that have about `size` characters in NFKC."""
    end = min(start + size, len(text))
    if text[start:end].isascii():
        return end
    while start < end and size > 0:
        size -= measure(text[start : start + MEASURED_CHARACTERS])
        start += MEASURED_CHARACTERS
    return min(start, end)


def _pattern(cuts: str, *, last: bool) -> re.Pattern[str]:
    """The pattern of the first place to cut, or of the text up to the last one."""
    place = rf"(?<=[\w{PUNCTUATION}])(?<![{PREPENDED}])"
    return re.compile(rf"(?s:.*){place}(?=[{cuts}])" if last else rf"{place}(?=[{cuts}])")


def _character_start(text: str, position: int) -> int:
    """The position, or one shortly before it that does not split off a mark from its letter."""
    for start in range(position, position - 32, -1):
        if unicodedata.category(text[start])[0] != "M":
            return start
    return position


def _components(component: Any, name: str) -> list[dict[str, Any]]:
    """The components of a sequence in their order, or one component, or none."""
    return [] if component is None else _flatten(json.loads(component.__getstate__()), name)


def _flatten(component: dict[str, Any], name: str) -> list[dict[str, Any]]:
    if component["type"] != "Sequence":
        return [component]
    return [part for one in component[name] for part in _flatten(one, name)]


def _is_local(normaliser: dict[str, Any]) -> bool:
    match normaliser:
        case {"type": "Replace", "pattern": {"Regex": " {2,}"}}:
            return True
        case {"type": "Strip", "strip_left": False}:
            return True
        case {"type": kind}:
            return kind in LOCAL_NORMALISERS
    return False
