"""Late chunking: from the chunks of a document to the spans of tokens that are pooled.

The encoder reads the whole document and pools each chunk's tokens afterwards, so that every chunk's
embedding knows the rest of the document (Günther et al. 2024, arXiv:2409.04701):

1. `cut_document` turns a choice of chunks into spans of characters.
2. `find_token_spans` turns spans of characters into spans of tokens.
3. `polyvec.pooling` averages the hidden states of each span of tokens.

A new choice of chunks needs a class and a function here, and a place in `ChunkChoice` and in
`cut_document`.

Axes in this file: T tokens of one document, S chunks, N sentences, D size of an embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int32

from polyvec.chunking import split_sentences
from polyvec.tokenizer import Tokens

DEFAULT_CHUNK_TOKENS = 256
"""Tokens per chunk if no choice of chunks is given."""

DEFAULT_OVERLAP_TOKENS = 256
"""Tokens that two neighbouring windows of a long document share by default."""


@dataclass(frozen=True, slots=True)
class Sentences:
    """Chunks of a fixed number of sentences."""

    count: int = 5
    """Sentences per chunk; the last chunk may have fewer."""

    lang: str = "en"
    """Language (ISO 639-1) whose abbreviations are known. Full stops of all scripts are known."""


@dataclass(frozen=True, slots=True)
class Semantic:
    """Chunks that end where the topic changes: between neighbouring sentences that are unlike.

    This is Greg Kamradt's semantic splitting, as LlamaIndex implements it.
    """

    percentile: int = 95
    """A chunk ends where the distance between two neighbours exceeds this percentile of all
    distances."""

    buffer: int = 1
    """Number of sentences before and after each sentence that are embedded together with it."""

    lang: str = "en"
    """Language (ISO 639-1) whose abbreviations are known."""


ChunkChoice = int | Sentences | Semantic | Sequence[tuple[int, int]]
"""Tokens per chunk, `Sentences`, `Semantic`, or the characters [start, end) of each chunk."""

Embed = Callable[[list[str]], Float32[np.ndarray, "N D"]]
"""Returns one unit vector per text."""

TokenSpans = tuple[Int32[np.ndarray, " S"], Int32[np.ndarray, " S"]]
"""The first token of each span, and the token after its last."""


def join_chunks(chunks: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join chunks with single spaces; return the text and the characters [start, end) of each.

    Raises ValueError for a chunk that is not a string.

    >>> join_chunks(["A fox.", "It sleeps."])
    ('A fox. It sleeps.', [(0, 6), (7, 17)])
    """
    spans, start = [], 0
    for number, chunk in enumerate(chunks):
        if not isinstance(chunk, str):
            raise ValueError(
                f"chunk {number} (counted from 0) must be a str, not {type(chunk).__name__}"
            )
        spans.append((start, start + len(chunk)))
        start += len(chunk) + 1
    return " ".join(chunks), spans


def cut_document(
    text: str, tokens: Tokens, choice: ChunkChoice, embed: Embed
) -> list[tuple[int, int]]:
    """The characters [start, end) of each chunk of a document.

    `tokens` are the document's, not truncated; `embed` is used by `Semantic` only. A document that
    cannot be cut is one chunk. Raises ValueError for a choice that is out of range, and for a span
    outside the document.
    """
    if isinstance(choice, bool | float):
        raise ValueError(f"chunks is {choice!r}, must be a number of tokens or spans")
    if isinstance(choice, int | np.integer):
        return cut_by_tokens(tokens, int(choice), len(text))
    if isinstance(choice, Sentences):
        return group_sentences(text, choice) or [(0, len(text))]
    if isinstance(choice, Semantic):
        return cut_by_topic(text, choice, embed)
    return [_check_span(number, span, text) for number, span in enumerate(choice)]


def cut_by_tokens(tokens: Tokens, size: int, num_characters: int) -> list[tuple[int, int]]:
    """Cut after every `size` of the text's own tokens; return characters [start, end).

    The chunks lie end to end and cover the text's `num_characters`. A chunk holds a few tokens more
    if the cut would otherwise fall inside a character that several tokens spell.
    """
    if size < 1:
        raise ValueError(f"chunks is {size}, must be at least 1 token")
    starts, ends = tokens.offsets[tokens.num_prompt : -1].T.tolist()
    edges, token = [0], size
    while token < len(starts):
        if starts[token] < ends[token - 1]:
            token += 1
            continue
        edges.append(starts[token])
        token += size
    return list(pairwise([*edges, num_characters]))


def group_sentences(text: str, choice: Sentences) -> list[tuple[int, int]]:
    """Cut after every `choice.count` sentences; return characters [start, end).

    The chunks lie end to end. An empty text has none.
    """
    if choice.count < 1:
        raise ValueError(f"Sentences.count is {choice.count}, must be at least 1")
    sentences = split_sentences(text, choice.lang)
    groups = [sentences[i : i + choice.count] for i in range(0, len(sentences), choice.count)]
    return [(group[0][0], group[-1][1]) for group in groups]


def cut_by_topic(text: str, choice: Semantic, embed: Embed) -> list[tuple[int, int]]:
    """Cut between sentences whose embeddings differ most; return characters [start, end)."""
    sentences, surroundings = find_surroundings(text, choice)
    return cut_at_changes(text, sentences, embed(surroundings), choice)


def find_surroundings(text: str, choice: Semantic) -> tuple[list[tuple[int, int]], list[str]]:
    """The characters [start, end) of each sentence, and the text around it that is embedded."""
    if choice.buffer < 0 or not 0 <= choice.percentile <= 100:
        raise ValueError(f"{choice}: buffer must be 0 or more, percentile in 0..100")
    sentences = split_sentences(text, choice.lang)
    last = len(sentences) - 1
    surroundings = [
        text[sentences[max(i - choice.buffer, 0)][0] : sentences[min(i + choice.buffer, last)][1]]
        for i in range(len(sentences))
    ]
    return sentences, surroundings


def cut_at_changes(
    text: str,
    sentences: Sequence[tuple[int, int]],
    vectors: Float32[np.ndarray, "N D"],
    choice: Semantic,
) -> list[tuple[int, int]]:
    """Cut where the embeddings of the surroundings of two neighbouring sentences differ most."""
    changes = find_topic_changes(vectors, choice.percentile)
    return list(pairwise([0, *(sentences[change][0] for change in changes), len(text)]))


def find_topic_changes(vectors: Float32[np.ndarray, "N D"], percentile: int) -> list[int]:
    """Positions of the unit vectors that are far from the vector before them.

    A distance is large if it exceeds the given percentile of all distances between neighbours.

    >>> find_topic_changes(np.float32([[1, 0], [1, 0], [0, 1], [0, 1]]), 60)
    [2]
    """
    if len(vectors) < 2:
        return []
    distances = 1 - (vectors[1:] * vectors[:-1]).sum(1)
    return (1 + np.flatnonzero(distances > np.percentile(distances, percentile))).tolist()


def find_token_spans(tokens: Tokens, text: str, chunks: Sequence[tuple[int, int]]) -> TokenSpans:
    """The tokens [start, end) of each chunk, given as characters [start, end) of `text`.

    A token belongs to every chunk that holds one of its characters; the space before a word does
    not count, because the tokenizer reads it as part of the word. The chunk with the text's first
    token also has `<s>` and the instruction, and the chunk with the last one also has `</s>`. A
    chunk without a token of its own has an empty span at the token that follows it. This happens
    to an empty chunk, and to a chunk behind the point where `tokens` were truncated.
    """
    first, last = tokens.num_prompt, len(tokens.ids) - 1
    own = tokens.offsets[first:last].tolist()
    limits = np.array(chunks, np.int64).reshape(-1, 2)
    lefts = np.searchsorted(tokens.offsets[first:last, 1], limits[:, 0], "right").tolist()
    rights = np.searchsorted(tokens.offsets[first:last, 0], limits[:, 1], "left").tolist()
    starts, ends = np.empty((2, len(limits)), np.int32)
    for number, (start, end) in enumerate(chunks):
        left, right = lefts[number], rights[number]
        while left < right and own[right - 1][1] > end and text[own[right - 1][0] : end].isspace():
            right -= 1
        while left < right and own[left][0] < start and text[start : own[left][1]].isspace():
            left += 1
        if left >= right:
            left = right = min(lefts[number], len(own))
        starts[number], ends[number] = first + left, first + right
    return _add_special_tokens(tokens, starts, ends)


def fill_empty_spans(tokens: Tokens, spans: TokenSpans) -> TokenSpans:
    """Give every empty span of `find_token_spans` the token that follows it, at the end `</s>`."""
    starts, ends = spans
    ends = np.where(starts == ends, starts + np.int32(1), ends)
    return _add_special_tokens(tokens, starts, ends)


def _add_special_tokens(
    tokens: Tokens, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
) -> TokenSpans:
    """Extend the spans with the text's first or last token over the special tokens beside it."""
    last = np.int32(len(tokens.ids) - 1)
    used = ends > starts
    return (
        np.where(used & (starts == tokens.num_prompt), np.int32(0), starts),
        np.where(used & (ends >= last), last + np.int32(1), ends),
    )


def _check_span(number: int, span: tuple[int, int], text: str) -> tuple[int, int]:
    start, end = (int(edge) for edge in span)
    if not 0 <= start <= end <= len(text):
        raise ValueError(
            f"chunk {number} (counted from 0) is the characters {start} to {end}, "
            f"outside the document's {len(text)}"
        )
    return start, end
