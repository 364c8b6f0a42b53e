"""Texts as token ids, alone or embedded in long documents.

Axes in this file: N texts, T tokens of one text, D tokens of one document.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32
from tokenizers import Tokenizer

TokenIds = Sequence[Int[np.ndarray, " _T"]]
"""Token ids of each text, special tokens included."""

Spans = Sequence[tuple[int, int]]
"""The part [start, end) of each text's tokens whose mean is the text's embedding."""

TEXTS_PER_CALL = 50_000
"""Texts that are passed to the tokenizer together, which bounds the memory of its results."""


def tokenise(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_tokens: int, prompt: str = ""
) -> list[Int32[np.ndarray, " _T"]]:
    """Token ids of each text behind `prompt`.

    A text of more than `max_tokens` tokens is cut there, and its last token remains `</s>`.
    """
    token_ids = []
    for start in range(0, len(texts), TEXTS_PER_CALL):
        part = [prompt + text for text in texts[start : start + TEXTS_PER_CALL]]
        for encoding in tokenizer.encode_batch_fast(part):
            ids = np.array(encoding.ids, np.int32)
            if len(ids) > max_tokens:
                ids = np.append(ids[: max_tokens - 1], ids[-1])
            token_ids.append(ids)
    return token_ids


def embed_in_documents(
    passages: Sequence[Int[np.ndarray, " _T"]],
    *,
    head: int,
    parts: Sequence[int] | Int[np.ndarray, " N"],
    seed: int,
    among: Sequence[Int[np.ndarray, " _T"]] | None = None,
) -> tuple[list[Int32[np.ndarray, " _D"]], list[tuple[int, int]]]:
    """Put every passage at a random place of a longer document; return documents and spans.

    Span i is the part [start, end) of document i that contains passage i. The document consists of
    `parts[i]` passages; the other ones are drawn at random from `among`, or from `passages` if
    `among` is None. The first `head` tokens of a passage (`<s>` and the instruction) and its last
    token (`</s>`) occur only once in the document: the span of the first passage includes the
    former, and the span of the last passage includes the latter, as in `Encoder.encode_chunks`.

    >>> texts = [np.int32([0, 7, 2]), np.int32([0, 8, 9, 2])]
    >>> documents, spans = embed_in_documents(texts, head=1, parts=[2, 2], seed=1)
    >>> [document[start:end].tolist() for document, (start, end) in zip(documents, spans)]
    [[0, 7], [8, 9, 2]]
    """
    rng = np.random.default_rng(seed)
    pool = passages if among is None else among
    documents, spans = [], []
    for passage, num_parts in zip(passages, parts, strict=True):
        place = int(rng.integers(num_parts))
        others = [pool[i] for i in rng.integers(len(pool), size=num_parts - 1).tolist()]
        bodies = [text[head:-1] for text in (*others[:place], passage, *others[place:])]
        bounds = head + np.cumsum([0, *map(len, bodies)])
        document = np.concatenate([passage[:head], *bodies, passage[-1:]]).astype(np.int32)
        documents.append(document)
        start = 0 if place == 0 else int(bounds[place])
        end = len(document) if place == num_parts - 1 else int(bounds[place + 1])
        spans.append((start, end))
    return documents, spans
