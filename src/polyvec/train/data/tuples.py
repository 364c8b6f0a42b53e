"""Examples of more than two texts: tuples for classification, and triplets from NLI.

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
    """Draw tuples of a text, another text of its class, and texts of other classes.

    Tuples are positions in `labels`. A class is drawn in proportion to its number of texts, and
    the only text of a class is drawn twice. If the other classes have too few texts, some occur
    twice in a tuple. Raises ValueError if there is only one class.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError("tuples need texts of at least two classes")
    own = rng.integers(len(labels), size=count)
    place = np.argsort(order)[own]
    of = np.searchsorted(starts, place, side="right") - 1
    start, size = starts[of], sizes[of]
    # Another text of the class: 1 to size - 1 positions further, modulo the class's size.
    step = 1 + rng.integers(np.maximum(size - 1, 1))
    mate = order[start + (place - start + step) % size]
    others = len(labels) - size
    negatives = np.empty((count, num_negatives), np.int64)
    for i in range(count):
        draws = rng.choice(others[i], num_negatives, replace=others[i] < num_negatives)
        # Positions in the order without this class.
        negatives[i] = order[draws + np.where(draws < start[i], 0, size[i])]
    return np.column_stack([own, mate, negatives])


def tuple_id_tokens(tokenizer: Tokenizer, number: int) -> Int32[np.ndarray, " T"]:
    """Tokens of a tuple's id, which is its number in decimal, without special tokens."""
    return np.array(tokenizer.encode(str(number), add_special_tokens=False).ids, np.int32)


def append_tokens(
    text: Int32[np.ndarray, " _T"], end: Int32[np.ndarray, " _end"], *, max_tokens: int
) -> Int32[np.ndarray, " _longer"]:
    """Insert `end` before the `</s>` of a text, which is cut if the result would be too long.

    >>> append_tokens(np.int32([0, 7, 8, 9, 2]), np.int32([5]), max_tokens=5).tolist()
    [0, 7, 8, 5, 2]
    """
    return np.concatenate([text[:-1][: max_tokens - 1 - len(end)], end, text[-1:]])


ENTAILED, CONTRADICTED = 0, 2
"""Labels of SNLI and MultiNLI. The label 1 is neutral."""


def nli_triplets(
    premises: Sequence[str], hypotheses: Sequence[str], labels: Sequence[int]
) -> list[tuple[str, str, list[str]]]:
    """Triplets of a premise, an entailed hypothesis and all contradictions (Gao et al. 2021).

    These are examples for `contrast`: a contradiction shares most words with its premise, so it is
    a hard negative. Neutral hypotheses are left out, and premises without an entailed hypothesis.

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
        for premise, hypotheses_of in entailed.items()
        for hypothesis in hypotheses_of
    ]
