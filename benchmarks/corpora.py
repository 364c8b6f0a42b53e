"""The texts that are timed, as lengths in tokens, and the arithmetic they cost."""

import numpy as np

from polyvec.config import ModelConfig

SHORTEST, LONGEST, MEDIAN, SPREAD = 8, 1024, 60, 0.9


def make_corpora(num_mixed: int) -> dict[str, list[int]]:
    """Name -> the lengths of its texts; "mixed" is log-normal as texts on the web are."""
    rng = np.random.default_rng(0)
    mixed = np.exp(rng.normal(np.log(MEDIAN), SPREAD, num_mixed)).round()
    return {
        "mixed": np.clip(mixed, SHORTEST, LONGEST).astype(int).tolist(),
        "8 x 128": [128] * 8,
        "4 x 512": [512] * 4,
        "1 x 8192": [8192],
    }


def make_ids(lengths: list[int], vocab_size: int) -> list[list[int]]:
    """Random tokens of these lengths between `<s>` and `</s>`."""
    rng = np.random.default_rng(1)
    return [[0, *rng.integers(4, vocab_size, length - 2).tolist(), 2] for length in lengths]


def count_flops(config: ModelConfig, lengths: list[int]) -> float:
    """Floating-point operations of the matrix products, without any padding."""
    linear = 2 * config.width * (4 * config.width + 2 * config.ffn_width) * sum(lengths)
    attention = 4 * config.width * sum(length**2 for length in lengths)
    return float(config.num_layers * (linear + attention))
