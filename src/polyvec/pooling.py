"""From one vector per token to one vector per span of tokens.

Axes in this file: T tokens, S spans, D width.
"""

import numpy as np
from jaxtyping import Float32, Int32


def pool_spans(
    hidden: Float32[np.ndarray, "T D"],
    starts: Int32[np.ndarray, " S"],
    ends: Int32[np.ndarray, " S"],
) -> Float32[np.ndarray, "S D"]:
    """Average the hidden states of each span [start, end).

    One span per text is mean pooling. Several spans per text is late chunking
    (Günther et al. 2024, arXiv:2409.04701): the encoder read the whole text, so each chunk's
    vector knows its context. Spans may overlap; an empty one is a ValueError.

    >>> pool_spans(np.float32([[1], [3], [5]]), np.int32([0, 2]), np.int32([2, 3])).tolist()
    [[2.0], [5.0]]
    """
    if (ends <= starts).any():
        raise ValueError("every span must hold at least one token")
    if len(starts) and (starts.min() < 0 or ends.max() > len(hidden)):
        raise ValueError(f"a span lies outside the {len(hidden)} tokens")
    # Along the first axis numpy adds one by one: in float32, 8,192 terms would lose digits.
    means = [
        hidden[start:end].mean(0, dtype=np.float64).astype(np.float32)
        for start, end in zip(starts, ends, strict=True)
    ]
    return np.stack(means) if means else np.empty((0, hidden.shape[1]), np.float32)
