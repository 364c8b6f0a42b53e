"""The text that an HTML page shows, with its headings as in Markdown and the lines of the source.

The page is split by one regular expression that matches at every position and never goes back, so
time is linear in its length whatever it contains. It follows the tokenisation of the HTML standard
(https://html.spec.whatwg.org/multipage/parsing.html#tokenization): what is never closed ends with
the page. Python's html.parser takes quadratic time before versions 3.11.14, 3.12.12 and 3.13.6, and
parsers that build a tree have no line numbers or take quadratic time for nested elements.
"""

import html
import re
from collections import Counter
from collections.abc import Iterator

HIDDEN = frozenset("script style template noscript svg iframe nav select textarea".split())
"""Elements that show no text to read."""

INLINE = frozenset(
    "a abbr b bdi bdo cite code data dfn em font i kbd label mark q rp rt ruby s samp small span "
    "strike strong sub sup time tt u var wbr".split()
)
"""Elements that do not begin a new line."""

LEVELS = {"title": 1} | {f"h{level}": level for level in range(1, 7)}
"""Elements that are headings, with their levels."""

ATTRIBUTES = r"""(?:[^>=]++|=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))?+)*+"""
"""Quotation marks matter only after an equals sign. A `>` between them does not end the tag."""

TOKEN = re.compile(
    rf"""<!--(?:-?>|.*?(?:--!?>|\Z))
    |<(?P<verbatim>script|style|textarea|iframe)(?=[\s/>]){ATTRIBUTES}(?:(?<!/)>|\Z)
        .*?(?:</(?P=verbatim)(?=[\s/>])[^>]*+(?:>|\Z)|\Z)
    |<(?P<closing>/?)(?P<tag>[a-z][^\s/>]*+)(?P<attributes>{ATTRIBUTES})(?:>|\Z)
    |<[!?/][^>]*+(?:>|\Z)
    |(?P<text>[^<]++|<)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
"""A comment, an element whose content is no HTML, a tag, a declaration, or text."""

LONG_REFERENCE = re.compile(r"&#(?:\d{8}|x[0-9a-f]{8})[0-9a-f]*;?", re.IGNORECASE)
"""A reference to a character that does not exist, since its number is too large."""

WHITE_SPACE = re.compile(r"\s+")


def html_pieces(source: str) -> Iterator[tuple[int, str]]:
    """Yield pieces of the text that a page shows, each with the line of the source it begins on.

    The joined pieces are Markdown as far as headings go. Text in elements such as `nav` and
    `script` is left out.
    """
    line = 1
    hidden: list[str] = []
    open_hidden = Counter[str]()
    num_pre = 0
    for token in TOKEN.finditer(source):
        text, tag = token["text"], (token["tag"] or "").lower()
        if text is not None:
            if not hidden:
                blank = len(text) - len(text.lstrip())
                yield line + text.count("\n", 0, blank), unescape(text, collapse=not num_pre)
        elif tag in HIDDEN:
            if not token["closing"]:
                if not token["attributes"].endswith("/"):
                    hidden.append(tag)
                    open_hidden[tag] += 1
            elif open_hidden[tag]:
                # Elements that are open inside of it end with it.
                while (inner := hidden.pop()) != tag:
                    open_hidden[inner] -= 1
                open_hidden[tag] -= 1
        elif tag and tag not in INLINE:
            is_heading, is_opening = tag in LEVELS, not token["closing"]
            if tag == "pre":
                num_pre = max(0, num_pre + (1 if is_opening else -1))
            if not hidden:
                is_block = is_heading or tag == "p" or (is_opening and tag in ("pre", "table"))
                yield line, "\n\n" if is_block else "\n"
                if is_heading and is_opening:
                    yield line, "#" * LEVELS[tag] + " "
        line += token[0].count("\n")


def unescape(text: str, *, collapse: bool) -> str:
    """The text with its character references resolved, and white space as a browser shows it."""
    text = html.unescape(LONG_REFERENCE.sub("\ufffd", text))
    return WHITE_SPACE.sub(" ", text) if collapse else text
