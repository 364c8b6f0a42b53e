"""Embeddings of rows, some thousands at a time; a row without a usable embedding costs no other.

Axes in this file: N texts, dim the size of an embedding.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from polyvec.encoder import MAX_BLOCK_CHARACTERS, MAX_BLOCK_TEXTS, Encoder
from polyvec.outputs import NotFiniteError
from polyvec.records import Report, Row

NO_EMBEDDING = "the model has no finite embedding for this text"
"""The reason for which a row with a good text is set aside."""


def encode_rows(
    encoder: Encoder,
    rows: Iterable[tuple[Row, str]],
    *,
    task: str | None,
    dim: int | None,
    report: Report,
) -> Iterator[tuple[list[Row], Float32[np.ndarray, "N dim"]]]:
    """Yield rows with the embeddings of their texts, in order and in bounded memory.

    `report` is told of the rows whose texts have no finite embedding.
    """
    with tqdm(unit="text", delay=1, disable=None) as bar:
        for window in _group_rows(rows):
            texts = [text for _, text in window]
            vectors = encode_finite(encoder, texts, task=task, dim=dim, progress=False)
            usable = np.isfinite(vectors).all(axis=1).tolist()
            for (row, _), is_usable in zip(window, usable, strict=True):
                if not is_usable:
                    report(row.reject(NO_EMBEDDING))
            bar.update(len(window))
            if any(usable):
                good_rows = [
                    row for (row, _), is_usable in zip(window, usable, strict=True) if is_usable
                ]
                yield good_rows, vectors[np.array(usable)]


def encode_finite(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    task: str | None = None,
    dim: int | None = None,
    progress: bool | None = None,
) -> Float32[np.ndarray, "N dim"]:
    """The embeddings of texts, with NaN for a text that has none.

    Arguments are those of `Encoder.encode`. A text that has no finite embedding may spoil those of
    other texts in its batch, so the texts in question are encoded again in smaller groups.
    """
    try:
        return encoder.encode(texts, task=task, dim=dim, progress=progress)
    except NotFiniteError as error:
        suspects = error.rows
    vectors = np.full((len(texts), dim or encoder.config.width), np.nan, np.float32)
    if len(texts) == 1:
        return vectors
    others = sorted({*range(len(texts))} - {*suspects})
    middle = len(suspects) // 2
    for part in (others, suspects[:middle], suspects[middle:]):
        if part:
            again = [texts[i] for i in part]
            vectors[part] = encode_finite(encoder, again, task=task, dim=dim, progress=False)
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
