"""Near-duplicates: files that say the same in the same words, in other words or in other languages.

1. The vector of a file is the mean of its passages' vectors for text-matching.
2. In the order of `list_files`, a file joins the group whose first file is most similar to it, if
   their cosine reaches the threshold. Otherwise it begins a group of its own. Groups do not form
   chains, since every copy is compared with the first file of the group.

Axes in this file: N passages, dim the vectors' size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from polyvec.encoder import Encoder
from polyvec.search.files import describe_folder, list_files, read_file
from polyvec.search.passages import split_file, texts_with_headings

TASK = "text-matching"


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
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, must be above 0 and at most 1")
    groups: list[Group] = []
    # The vectors of the groups' first files; the array doubles when it is full.
    firsts = np.empty((64, encoder.config.width), np.float32)
    paths = list_files(folder, on_unreadable=lambda error: on_skipped(describe_folder(error)))
    for path in paths:
        try:
            split = split_file(folder, read_file(folder, path), encoder.tokenizer)
        except ValueError as error:
            on_skipped(str(error))
            continue
        if split.document.cut:
            on_skipped(f"{folder / path}: {split.document.cut}")
        if split.passages:
            vector = mean_vector(encoder, [text for text, _ in texts_with_headings(split)])
            scores = firsts[: len(groups)] @ vector
            best = int(scores.argmax()) if len(groups) else -1
            # The cosine of equal texts is 1 only up to rounding.
            if best >= 0 and scores[best] >= threshold - 1e-5:
                groups[best].copies.append((path, float(min(scores[best], 1))))
            else:
                if len(groups) == len(firsts):
                    firsts = np.concatenate([firsts, np.empty_like(firsts)])
                firsts[len(groups)] = vector
                groups.append(Group(path, []))
        progress(path)
    for group in groups:
        group.copies.sort(key=lambda copy: (-copy[1], copy[0]))
    return [group for group in groups if group.copies]


def mean_vector(encoder: Encoder, texts: list[str]) -> Float32[np.ndarray, " dim"]:
    """The mean of the texts' vectors, with length 1."""
    mean = encoder.encode(texts, task=TASK, progress=False).mean(0)
    return mean / np.linalg.norm(mean).clip(1e-12)
