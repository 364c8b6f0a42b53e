"""Texts of a request to the engine's inputs: token ids and spans.

Axes in this file: T tokens of one text, S spans.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from polyvec.late_chunking import TokenSpans
from polyvec.tokenizer import Tokenizer, Tokens

PREFIX_CHARACTERS_PER_TOKEN = 32
"""Characters of a long text that are tokenised first, per token that the model reads."""


WHITE_SPACE = re.compile(r"\s+")

Side = Literal["left", "right"]
"""The side of a text that truncation removes."""


def tokenise(
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[list[int]],
    prompt: str,
    truncation_side: Side = "right",
) -> list[Tokens]:
    """The tokens of each text after the prompt, truncated to the longest text of the model.

    A text may also be a list of token ids.
    """
    if truncation_side == "left":
        return [
            tokenise_ids(tokenizer, text, prompt, truncation_side)
            if isinstance(text, list)
            else tokenise_end(tokenizer, text, prompt)
            for text in texts
        ]
    limit = PREFIX_CHARACTERS_PER_TOKEN * tokenizer.max_tokens
    # Tokenising many short texts in one call is several times faster than one by one.
    short = [text for text in texts if isinstance(text, str) and len(text) <= limit]
    short_tokens = iter(tokenizer.encode(short, [prompt] * len(short)) if short else [])
    tokens = []
    for text in texts:
        if isinstance(text, list):
            tokens.append(tokenise_ids(tokenizer, text, prompt))
        elif len(text) > limit:
            tokens.append(tokenise_long_text(tokenizer, text, prompt))
        else:
            tokens.append(next(short_tokens))
    return tokens


def tokenise_long_text(tokenizer: Tokenizer, text: str, prompt: str) -> Tokens:
    """The tokens of a text, of which only the beginning is tokenised where that is enough.

    A tokenizer splits at white space first. The beginning of a text up to a white space therefore
    has the same tokens alone as in the whole text. A text without white space, or with few tokens
    for its length, is tokenised to its end.
    """
    limit = PREFIX_CHARACTERS_PER_TOKEN * tokenizer.max_tokens
    cut = max(text.rfind(space, 0, limit) for space in " \n\t")
    if cut > 0:
        [tokens] = tokenizer.encode([text[:cut]], [prompt])
        if tokens.truncated:
            return tokens
    return tokenizer.encode([text], [prompt])[0]


def tokenise_end(tokenizer: Tokenizer, text: str, prompt: str) -> Tokens:
    """The tokens of a text, truncated at its start: `<s>`, the prompt, the end, `</s>`.

    Only the end of a long text is tokenised where that is enough, for the reason that
    `tokenise_long_text` gives.
    """
    limit = PREFIX_CHARACTERS_PER_TOKEN * tokenizer.max_tokens
    if len(text) > limit:
        space = WHITE_SPACE.search(text, len(text) - limit)
        if space is not None:
            [tokens] = tokenizer.encode([text[space.end() :]], [prompt], truncate=False)
            if len(tokens.ids) > tokenizer.max_tokens:
                return keep_end(tokens, tokenizer.max_tokens)
    [tokens] = tokenizer.encode([text], [prompt], truncate=False)
    return keep_end(tokens, tokenizer.max_tokens)


def keep_end(tokens: Tokens, max_tokens: int) -> Tokens:
    """At most `max_tokens` tokens: those before the text, and as many of its end as fit."""
    num_dropped = len(tokens.ids) - max_tokens
    if num_dropped <= 0:
        return tokens
    # A prompt longer than the model's longest text leaves room for nothing else.
    num_prompt = min(tokens.num_prompt, max_tokens - 1)
    kept = np.r_[0:num_prompt, num_prompt + num_dropped : len(tokens.ids)]
    return Tokens(tokens.ids[kept], tokens.offsets[kept], num_prompt, truncated=True)


def tokenise_ids(
    tokenizer: Tokenizer, ids: list[int], prompt: str, truncation_side: Side = "right"
) -> Tokens:
    """The tokens of a text that is given as token ids between `<s>` and `</s>`.

    The prompt's own tokens come between `<s>` and the text.
    """
    frame = tokenizer.encode([""], [prompt.rstrip()])[0].ids
    own = np.array(ids[1:-1], np.int32)
    room = max(0, tokenizer.max_tokens - len(frame))
    kept = own[:room] if truncation_side == "right" else own[max(0, len(own) - room) :]
    all_ids = np.concatenate([frame[:-1], kept, frame[-1:]])
    return Tokens(
        ids=all_ids,
        offsets=np.zeros((len(all_ids), 2), np.int32),
        num_prompt=len(frame) - 1,
        truncated=len(kept) < len(own),
    )


def whole_text_span(num_tokens: int) -> TokenSpans:
    """One span that covers a whole text."""
    return np.zeros(1, np.int32), np.full(1, num_tokens, np.int32)


def token_spans(first: int, end: int) -> TokenSpans:
    """One span per token, from token `first` up to but not including token `end`."""
    starts = np.arange(first, end, dtype=np.int32)
    return starts, starts + np.int32(1)
