"""Texts of a request to the engine's inputs: token ids and spans.

Axes in this file: T tokens of one text, S spans.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from polyvec.late_chunking import TokenSpans
from polyvec.tokenizer import Tokenizer, Tokens

IDS_TEXTS = 64
"""Texts of token ids that are read in one step."""

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
    steps = tokenise_steps(tokenizer, texts, prompt, truncation_side)
    tokens = dict(found for step in steps for found in step)
    return [tokens[number] for number in range(len(texts))]


def tokenise_steps(
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[list[int]],
    prompt: str,
    truncation_side: Side = "right",
) -> Iterator[list[tuple[int, Tokens]]]:
    """Yield the results of `tokenise` with their positions, after steps of bounded cost."""
    strings = [text for text in texts if isinstance(text, str)]
    if strings and truncation_side == "left":
        for number, text in enumerate(strings):
            yield [(number, tokenizer.encode_end(text, prompt))]
        return
    if len(strings) == len(texts):
        yield from tokenizer.encode_steps(strings, [prompt] * len(strings))
        return
    for first in range(0, len(texts), IDS_TEXTS):
        group = enumerate(texts[first : first + IDS_TEXTS], first)
        yield [
            (number, tokenise_ids(tokenizer, text, prompt, truncation_side))
            for number, text in group
            if isinstance(text, list)
        ]


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
