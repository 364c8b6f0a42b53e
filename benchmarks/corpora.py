"""Texts to time, as token counts or as strings, and the arithmetic that they cost."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.load import make_texts
from polyvec.config import ModelConfig
from polyvec.data_folder import DATA_VARIABLE, data_folder

MIN_TOKENS, MAX_TOKENS, MEDIAN_TOKENS, LOG_SPREAD = 8, 1024, 60, 0.9
"""Lengths of the corpus "mixed": the standard deviation is that of the logarithm."""

MAX_CHARACTERS = 240
"""Longer passages and questions are cut to this length."""

MIN_PASSAGE_CHARACTERS, MIN_QUESTION_CHARACTERS = 80, 10


def make_corpora(num_mixed: int) -> dict[str, list[int]]:
    """Return the text lengths of each corpus, in tokens.

    The lengths of "mixed" follow a log-normal distribution, as those of texts on the web do.
    """
    rng = np.random.default_rng(0)
    mixed = np.exp(rng.normal(np.log(MEDIAN_TOKENS), LOG_SPREAD, num_mixed)).round()
    return {
        "mixed": np.clip(mixed, MIN_TOKENS, MAX_TOKENS).astype(int).tolist(),
        "8 x 128": [128] * 8,
        "4 x 512": [512] * 4,
        "1 x 8192": [8192],
    }


def make_ids(lengths: list[int], vocab_size: int) -> list[list[int]]:
    """Return texts of random tokens with these lengths, each between `<s>` and `</s>`."""
    rng = np.random.default_rng(1)
    return [[0, *rng.integers(4, vocab_size, length - 2).tolist(), 2] for length in lengths]


def count_flops(config: ModelConfig, lengths: list[int]) -> float:
    """Return the floating-point operations of the matrix products, without padding."""
    linear = 2 * config.width * (4 * config.width + 2 * config.ffn_width) * sum(lengths)
    attention = 4 * config.width * sum(length**2 for length in lengths)
    return float(config.num_layers * (linear + attention))


def optional_data(given: Path | None) -> Path | None:
    """Return the data folder, or None if there is neither `given` nor `POLYVEC_DATA`."""
    return data_folder(given) if given or os.environ.get(DATA_VARIABLE) else None


def read_passages(data: Path | None, number: int) -> list[str]:
    """Return `number` different texts of 80 to 240 characters in many languages, always the same.

    They come from the columns `text` and `positive` of the tables in `data`, or from the example
    notes if there is no data folder. If there are too few, copies with a number at the end follow.
    """
    texts = (
        _read_texts(data, ("text", "positive"), MIN_PASSAGE_CHARACTERS)
        if data
        else make_texts(1000)
    )
    passages = list(dict.fromkeys(text[:MAX_CHARACTERS] for text in texts))[:number]
    rounds = range(1, -(-number // len(passages)))
    return [*passages, *(f"{text} ({n})" for n in rounds for text in passages)][:number]


def read_questions(data: Path | None, number: int) -> list[str]:
    """Return `number` texts of the column `query` of the adapter tables, or sentences of notes."""
    texts = (
        _read_texts(data / "adapters", ("query",), MIN_QUESTION_CHARACTERS)
        if data
        else make_texts(number)
    )
    return list(dict.fromkeys(text[:MAX_CHARACTERS] for text in texts))[:number]


def _read_texts(folder: Path, columns: tuple[str, ...], min_characters: int) -> list[str]:
    """Return the texts of all tables, sorted by a hash, which mixes languages and sources."""
    texts = set[str]()
    for path in folder.rglob("*.parquet"):
        # Evaluation data is kept for evaluation.
        if "eval" not in path.relative_to(folder).parts:
            schema = pq.read_schema(path)
            for name in set(columns) & set(schema.names):
                column = pq.read_table(path, columns=[name])[name]
                texts.update(text for text in column.to_pylist() if len(text) >= min_characters)
    return sorted(texts, key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest())
