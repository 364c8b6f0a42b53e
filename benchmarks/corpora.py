"""The texts that are timed, as lengths in tokens or as they are, and the arithmetic they cost."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.load import make_texts
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


def read_passages(data: Path, number: int) -> list[str]:
    """`number` different texts of 80 to 240 characters in many languages, always the same.

    They come from the columns `text` and `positive` of the tables below `data`, or from the
    example notes if there is no such folder. Too few are told again with a number behind them.
    """
    found = _read_texts(data, ("text", "positive"), 80) if data.is_dir() else make_texts(1000)
    passages = list(dict.fromkeys(text[:240] for text in found))[:number]
    rounds = range(1, -(-number // len(passages)))
    return [*passages, *(f"{text} ({n})" for n in rounds for text in passages)][:number]


def read_questions(data: Path, number: int) -> list[str]:
    """`number` texts of the columns `query` of the tables for retrieval, or of the notes."""
    found = _read_texts(data / "adapters", ("query",), 10) if data.is_dir() else make_texts(number)
    return list(dict.fromkeys(text[:240] for text in found))[:number]


def _read_texts(folder: Path, columns: tuple[str, ...], shortest: int) -> list[str]:
    """Texts of the tables in the order of their hashes, so that languages and sources are mixed."""
    texts = set[str]()
    for path in folder.rglob("*.parquet"):
        # Evaluation data is not for measuring speed either.
        if "eval" not in path.relative_to(folder).parts:
            schema = pq.read_schema(path)
            for name in set(columns) & set(schema.names):
                column = pq.read_table(path, columns=[name])[name]
                texts.update(text for text in column.to_pylist() if len(text) >= shortest)
    return sorted(texts, key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest())
