"""Near-duplicates: files that say the same in the same words, in other words or in other languages.

1. The vector of a file is the mean of its passages' vectors for text-matching; that of a row is the
   vector of its text.
2. In the order of `list_files`, a file joins the group whose first file is most similar to it, if
   their cosine reaches the threshold. Otherwise it begins a group of its own. Groups do not form
   chains, since every copy is compared with the first file of the group. Rows are grouped alike.

Axes in this file: N files or rows, dim the vectors' size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from polyvec.encoder import Encoder
from polyvec.records import Report, Row
from polyvec.row_encoding import encode_rows
from polyvec.search.files import list_files, read_file
from polyvec.search.passages import split_file, texts_with_headings

TASK = "text-matching"

BLOCK_ITEMS = 256
"""Rows that are compared with the groups at a time."""

Groups = list[tuple[Any, list[tuple[Any, float]]]]
"""The first item of each group, and the others with the cosine of each with the first."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of files that say the same."""

    path: str
    """The first file, relative to the folder."""

    copies: list[tuple[str, float]]
    """The other files and the cosine of each with the first file; the most similar first."""


def find_duplicates(
    folder: Path,
    encoder: Encoder,
    *,
    threshold: float = 0.95,
    on_skipped: Callable[[str], object] = lambda sentence: None,
    progress: Callable[[str], object] = lambda path: None,
) -> list[Group]:
    """All groups of at least two files, in the order of `list_files`.

    `on_skipped` is called with a sentence for each file that cannot be read as a whole, and
    `progress` with the path of each file that is done. Raises ValueError if the folder does not
    exist, and unless the threshold is above 0 and at most 1.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    _check_threshold(threshold)

    def vectors() -> Iterator[tuple[list[str], Float32[np.ndarray, "N dim"]]]:
        for path in list_files(folder):
            try:
                split = split_file(folder, read_file(folder, path), encoder.tokenizer)
            except ValueError as error:
                on_skipped(str(error))
                continue
            if split.document.cut:
                on_skipped(f"{folder / path}: {split.document.cut}")
            if split.passages:
                texts = [text for text, _ in texts_with_headings(split)]
                yield [path], mean_vector(encoder, texts)[None]
            progress(path)

    groups = [Group(path, copies) for path, copies in group_similar(vectors(), threshold)]
    for group in groups:
        group.copies.sort(key=lambda copy: (-copy[1], copy[0]))
    return groups


def find_duplicate_rows(
    rows: Iterable[tuple[Row, str]], encoder: Encoder, *, threshold: float, report: Report
) -> Groups:
    """All groups of at least two rows whose texts say the same, in the order of the rows.

    `rows` come with their texts, and `report` is told of those without a finite embedding.
    """
    _check_threshold(threshold)

    def vectors() -> Iterator[tuple[list[Row], Float32[np.ndarray, "N dim"]]]:
        for window, all_vectors in encode_rows(encoder, rows, task=TASK, dim=None, report=report):
            for start in range(0, len(window), BLOCK_ITEMS):
                part = slice(start, start + BLOCK_ITEMS)
                yield window[part], all_vectors[part]

    groups = group_similar(vectors(), threshold)
    for _, copies in groups:
        copies.sort(key=lambda copy: -copy[1])
    return groups


def group_similar(
    blocks: Iterable[tuple[Sequence[Any], Float32[np.ndarray, "N dim"]]], threshold: float
) -> Groups:
    """The groups with at least two items; the items come in blocks, with their vectors."""
    groups: Groups = []
    # The vectors of the groups' first items; the array doubles when it is full.
    firsts = np.empty((0, 0), np.float32)
    for items, vectors in blocks:
        if not firsts.size:
            firsts = np.empty((64, vectors.shape[1]), np.float32)
        num_known = len(groups)
        known_scores = vectors @ firsts[:num_known].T
        for item, vector, known in zip(items, vectors, known_scores, strict=True):
            # Groups that began in this block are compared one by one.
            scores = np.append(known, firsts[num_known : len(groups)] @ vector)
            best = int(scores.argmax()) if len(groups) else -1
            # The cosine of equal texts is 1 only up to rounding.
            if best >= 0 and scores[best] >= threshold - 1e-5:
                groups[best][1].append((item, float(min(scores[best], 1))))
                continue
            if len(groups) == len(firsts):
                firsts = np.concatenate([firsts, np.empty_like(firsts)])
            firsts[len(groups)] = vector
            groups.append((item, []))
    return [group for group in groups if group[1]]


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, must be above 0 and at most 1")


def mean_vector(encoder: Encoder, texts: list[str]) -> Float32[np.ndarray, " dim"]:
    """The mean of the texts' vectors, with length 1."""
    mean = encoder.encode(texts, task=TASK, progress=False).mean(0)
    return mean / np.linalg.norm(mean).clip(1e-12)
