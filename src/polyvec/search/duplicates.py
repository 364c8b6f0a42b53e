"""Near-duplicates: files that say the same, be it in other words or another language.

1. A file's vector is the mean of its passages' vectors for text-matching.
2. In the order of `list_files`, a file joins the group whose first file is most like it, if that
   is like enough; else it begins a group. So nothing is chained: every copy is near the original.

Axes in this file: N passages, dim the vectors' size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from polyvec.encoder import Encoder
from polyvec.search.files import list_files, read_file
from polyvec.search.passages import cut_file, titled_texts

TASK = "text-matching"


@dataclass(frozen=True, slots=True)
class Group:
    """Files that say the same."""

    path: str
    """The first of them, below the folder."""

    copies: list[tuple[str, float]]
    """The others, and the cosine of each with the first; the most alike first."""


def find_duplicates(
    folder: Path,
    encoder: Encoder,
    *,
    threshold: float = 0.95,
    skipped: Callable[[str], object] = lambda sentence: None,
    progress: Callable[[str], object] = lambda path: None,
) -> list[Group]:
    """Groups of two files and more, in the order of `list_files`.

    `skipped` is told a sentence for each file that cannot be read, `progress` every path done.
    Raises ValueError if there is no such folder, and for a threshold that is no cosine.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, must be above 0 and at most 1")
    groups: list[Group] = []
    # Grown by doubling, as a list is.
    firsts = np.empty((64, encoder.config.width), np.float32)
    for path in list_files(folder):
        try:
            cut = cut_file(folder, read_file(folder, path), encoder.tokenizer)
        except ValueError as error:
            skipped(str(error))
            continue
        if cut.chunks:
            vector = mean_vector(encoder, [text for text, _ in titled_texts(cut)])
            scores = firsts[: len(groups)] @ vector
            best = int(scores.argmax()) if len(groups) else -1
            # Equal texts have a cosine of 1 only up to rounding.
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
    """One vector of length 1 for all of the texts."""
    mean = encoder.encode(texts, task=TASK, progress=False).mean(0)
    return mean / np.linalg.norm(mean).clip(1e-12)
