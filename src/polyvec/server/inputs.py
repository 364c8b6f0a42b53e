"""Texts of a request to the engine's inputs: token ids and spans.

Axes in this file: T tokens of one text, S spans.
"""

from collections.abc import Sequence

import numpy as np

from polyvec.late_chunking import TokenSpans
from polyvec.tokenizer import Tokenizer, Tokens

PREFIX_CHARACTERS_PER_TOKEN = 32
"""Characters of a long text that are tokenised first, per token that the model reads."""


def tokenise(
    tokenizer: Tokenizer, texts: Sequence[str] | Sequence[list[int]], prompt: str
) -> list[Tokens]:
    """The tokens of each text after the prompt, truncated to the longest text of the model.

    A text may also be a list of token ids.
    """
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


def tokenise_ids(tokenizer: Tokenizer, ids: list[int], prompt: str) -> Tokens:
    """The tokens of a text that is given as token ids, with or without its `<s>` and `</s>`."""
    frame = tokenizer.encode([""], [prompt.rstrip()])[0].ids
    first, last = int(frame[0]), int(frame[-1])
    own = ids[1:] if ids[0] == first else ids
    own = own[:-1] if own and own[-1] == last else own
    kept = own[: max(0, tokenizer.max_tokens - len(frame))]
    all_ids = np.concatenate([frame[:-1], np.array(kept, np.int32), frame[-1:]])
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
