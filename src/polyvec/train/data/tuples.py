"""Rows of more than two texts: classification's tuples of nine, and triplets of NLI.

Axes in this file: N texts, C tuples, W texts in a tuple, T tokens.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32
from tokenizers import Tokenizer


def draw_tuples(
    labels: Int[np.ndarray, " N"], *, count: int, num_negatives: int, rng: np.random.Generator
) -> Int[np.ndarray, "C W"]:
    """Tuples of a text, another of its class, and texts of other classes, as positions.

    A class is drawn as often as it has texts; one with a single text is drawn with itself. Where
    the other classes have too few texts, some come twice in a tuple. Raises ValueError for a
    single class.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError("tuples need texts of at least two classes")
    own = rng.integers(len(labels), size=count)
    place = np.argsort(order)[own]
    of = np.searchsorted(starts, place, side="right") - 1
    start, size = starts[of], sizes[of]
    # Another of the class: step on by 1 to size - 1 within its run.
    step = 1 + rng.integers(np.maximum(size - 1, 1))
    mate = order[start + (place - start + step) % size]
    others = len(labels) - size
    negatives = np.empty((count, num_negatives), np.int64)
    for i in range(count):
        draws = rng.choice(others[i], num_negatives, replace=others[i] < num_negatives)
        # Positions in the order without this class's run.
        negatives[i] = order[draws + np.where(draws < start[i], 0, size[i])]
    return np.column_stack([own, mate, negatives])


def number_tokens(tokenizer: Tokenizer, number: int) -> Int32[np.ndarray, " T"]:
    """The tokens of a tuple's id, its number in decimal, without special tokens."""
    return np.array(tokenizer.encode(str(number), add_special_tokens=False).ids, np.int32)


def append_tokens(
    text: Int32[np.ndarray, " _T"], end: Int32[np.ndarray, " _end"], *, max_tokens: int
) -> Int32[np.ndarray, " _longer"]:
    """A text with `end` before its `</s>`; the text gives way where that is too long.

    >>> append_tokens(np.int32([0, 7, 8, 9, 2]), np.int32([5]), max_tokens=5).tolist()
    [0, 7, 8, 5, 2]
    """
    return np.concatenate([text[:-1][: max_tokens - 1 - len(end)], end, text[-1:]])


ENTAILED, CONTRADICTED = 0, 2
"""Labels of SNLI and MultiNLI; 1 is neutral."""


def nli_triplets(
    premises: Sequence[str], hypotheses: Sequence[str], labels: Sequence[int]
) -> list[tuple[str, str, list[str]]]:
    """Each premise with a hypothesis that it entails and all that it contradicts (Gao et al. 2021).

    For `contrast`: what a premise contradicts shares most of its words, so it is the hardest
    negative there is. Neutral hypotheses, and premises that entail nothing, are left out.

    >>> nli_triplets(["a", "a", "b"], ["x", "y", "z"], [0, 2, 1])
    [('a', 'x', ['y'])]
    """
    entailed, contradicted = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for premise, hypothesis, label in zip(premises, hypotheses, labels, strict=True):
        if label == ENTAILED:
            entailed[premise].append(hypothesis)
        elif label == CONTRADICTED:
            contradicted[premise].append(hypothesis)
    return [
        (premise, hypothesis, contradicted[premise])
        for premise, found in entailed.items()
        for hypothesis in found
    ]
