"""Embeddings of rows, some thousands at a time; a row without a usable embedding costs no other.

Axes in this file: N texts, dim the size of an embedding.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from polyvec.encoder import Encoder
from polyvec.outputs import NotFiniteError
from polyvec.progress import make_bar
from polyvec.records import Report, Row
from polyvec.texts import MAX_BLOCK_CHARACTERS, MAX_BLOCK_TEXTS
from polyvec.truncation import TooLongError, Truncate, Truncation, TruncationWarning

TOO_LONG = "the text has more tokens than the model reads"
"""The reason for which a long row is set aside if long texts are errors."""

NO_EMBEDDING = "the model has no finite embedding for this text"
"""The reason for which a row with a good text is set aside."""


def encode_rows(
    encoder: Encoder,
    rows: Iterable[tuple[Row, str]],
    *,
    task: str | None,
    dim: int | None,
    truncate: Truncate = "end",
    report: Report,
) -> Iterator[tuple[list[Row], Float32[np.ndarray, "N dim"]]]:
    """Yield rows with the embeddings of their texts, in order and in bounded memory.

    `report` is told of the rows whose texts have no finite embedding, or which are too long if
    `truncate` says that these are errors.
    """
    rule = Truncation(truncate, encoder.config.max_tokens, is_shared=True)
    with make_bar("text", None) as bar:
        for window in _group_rows(rows):
            bar.update(len(window))
            try:
                vectors = _encode_window(encoder, window, task, dim, rule)
            except TooLongError as error:
                for number in error.rows:
                    report(window[number][0].reject(TOO_LONG))
                window = [pair for n, pair in enumerate(window) if n not in {*error.rows}]
                vectors = _encode_window(encoder, window, task, dim, rule)
            usable = np.atleast_1d(np.isfinite(vectors).all(axis=1))
            is_good = usable.tolist()
            for (row, _), good in zip(window, is_good, strict=True):
                if not good:
                    report(row.reject(NO_EMBEDDING))
            good_rows = [row for (row, _), good in zip(window, is_good, strict=True) if good]
            if good_rows:
                yield good_rows, vectors[usable]
    if rule.num_texts:
        warnings.warn(str(rule), TruncationWarning, stacklevel=2)


def _encode_window(
    encoder: Encoder,
    window: Sequence[tuple[Row, str]],
    task: str | None,
    dim: int | None,
    rule: Truncation,
) -> Float32[np.ndarray, "N dim"]:
    texts = [text for _, text in window]
    return encode_finite(encoder, texts, task=task, dim=dim, truncate=rule, progress=False)


def encode_finite(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    task: str | None = None,
    dim: int | None = None,
    truncate: Truncate | Truncation = "end",
    progress: bool | None = None,
) -> Float32[np.ndarray, "N dim"]:
    """The embeddings of texts, with NaN for a text that has none.

    Arguments are those of `Encoder.encode`. A text that has no finite embedding may spoil those of
    other texts in its batch, so the texts in question are encoded again in smaller groups.
    """
    try:
        return encoder.encode(texts, task=task, dim=dim, truncate=truncate, progress=progress)
    except NotFiniteError as error:
        suspects = error.rows
    vectors = np.full((len(texts), dim or encoder.config.width), np.nan, np.float32)
    if len(texts) == 1:
        return vectors
    if isinstance(truncate, Truncation):
        # What was cut has been counted.
        truncate = Truncation(truncate.truncate, truncate.max_tokens, is_shared=True)
    others = sorted({*range(len(texts))} - {*suspects})
    middle = len(suspects) // 2
    for part in (others, suspects[:middle], suspects[middle:]):
        if part:
            again = [texts[i] for i in part]
            vectors[part] = encode_finite(
                encoder, again, task=task, dim=dim, truncate=truncate, progress=False
            )
    return vectors


def _group_rows(rows: Iterable[tuple[Row, str]]) -> Iterator[list[tuple[Row, str]]]:
    """Neighbouring rows, as many as the encoder takes at a time."""
    group, characters = list[tuple[Row, str]](), 0
    for row, text in rows:
        if group and characters + len(text) > MAX_BLOCK_CHARACTERS:
            yield group
            group, characters = [], 0
        group.append((row, text))
        characters += len(text)
        if len(group) == MAX_BLOCK_TEXTS:
            yield group
            group, characters = [], 0
    if group:
        yield group
