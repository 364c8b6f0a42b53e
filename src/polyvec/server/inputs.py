"""From a request's texts to what the engine reads: token ids and spans.

Axes in this file: T tokens of one text, S spans.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from polyvec.tokenizer import Tokenizer, Tokens

PREFIX = 32
"""Of a long text, so many characters for each token that the model reads are tried first."""

Spans = tuple[Int32[np.ndarray, " S"], Int32[np.ndarray, " S"]]
"""Where spans start and end."""


def read(
    tokenizer: Tokenizer, texts: Sequence[str] | Sequence[list[int]], prompt: str
) -> list[Tokens]:
    """Each text's tokens, the prompt before it, cut to what the model reads."""
    found: list[Tokens | None] = [None] * len(texts)
    usual: list[int] = []
    for number, text in enumerate(texts):
        if isinstance(text, list):
            found[number] = read_ids(tokenizer, text, prompt)
        elif len(text) > PREFIX * tokenizer.max_tokens:
            found[number] = read_long(tokenizer, text, prompt)
        else:
            usual.append(number)
    if usual:
        strings = [text for text in texts if isinstance(text, str)]
        strings = [text for text in strings if len(text) <= PREFIX * tokenizer.max_tokens]
        tokens = tokenizer.encode(strings, [prompt] * len(usual))
        for number, one in zip(usual, tokens, strict=True):
            found[number] = one
    return [one for one in found if one is not None]


def read_long(tokenizer: Tokenizer, text: str, prompt: str) -> Tokens:
    """A text of which the model reads the beginning only, without reading all of it.

    A tokenizer cuts at white space first, so a beginning that ends there has the same tokens by
    itself as in the whole. One without white space, or with few tokens, is read to its end.
    """
    limit = PREFIX * tokenizer.max_tokens
    cut = max(text.rfind(space, 0, limit) for space in " \n\t")
    if cut > 0:
        [tokens] = tokenizer.encode([text[:cut]], [prompt])
        if tokens.truncated:
            return tokens
    return tokenizer.encode([text], [prompt])[0]


def read_ids(tokenizer: Tokenizer, ids: list[int], prompt: str) -> Tokens:
    """A text given as this tokenizer's ids, with or without its `<s>` and `</s>`."""
    before = tokenizer.encode([""], [prompt.rstrip()])[0].ids
    start, end = int(before[0]), int(before[-1])
    own = ids[1:] if ids[0] == start else ids
    own = own[:-1] if own and own[-1] == end else own
    kept = own[: max(0, tokenizer.max_tokens - len(before))]
    all_ids = np.concatenate([before[:-1], np.array(kept, np.int32), before[-1:]])
    return Tokens(
        ids=all_ids,
        offsets=np.zeros((len(all_ids), 2), np.int32),
        num_prompt=len(before) - 1,
        truncated=len(kept) < len(own),
    )


def token_spans(first: int, end: int) -> Spans:
    """A span for each token from `first` up to `end`."""
    starts = np.arange(first, end, dtype=np.int32)
    return starts, starts + np.int32(1)
