"""Pieces for a model that has too few: rows of its teacher's table, without a step of training.

    python recipes/pieces.py runs/mini/model --data ../shared/data --out runs/mini/grown

mini.py trains with 80,000 of XLM-RoBERTa's 250,000 pieces. A Malayalam text then needs 1.8 times
the tokens, split as the teacher never saw it, and finds its translation in 78 of 100 cases where
the teacher finds 97. Training hardly moved the rows that were kept (by 1.6 % of their length), so
the teacher's other rows still fit the blocks: put back, they work at once. Old pieces keep their
numbers and their bits, adapters say nothing of new ones, and only texts with a new piece change.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int
from mini import ALSO, TUNED, sample_texts
from tokenizers import Tokenizer

from polyvec.checkpoint import (
    Int8Matrix,
    Weights,
    load_checkpoint,
    quantise_rows,
    save_compact,
    to_float,
)
from polyvec.train.packed import read_e5
from polyvec.train.vocabulary import count_pieces, xlm_roberta_tokenizer

VOCAB_SIZE = 104_000
"""Of these 80,000 were trained with. All 250,000 would find more yet (docs/log.md), in 60 MB
more."""

SHARES = dict.fromkeys([*TUNED, *ALSO, "en", "zh", "ja", "mn", "si"], 1.0)
"""How much each language has to say in the choice; the other three hundred have `OTHERS`."""

OTHERS = 0.05

COUNTED = 3_000
"""Texts of a language in which pieces are counted."""

TABLE, BANK = "embeddings.word.weight", "embeddings.word.lora_a"


def match_dims(
    ours: Float32[np.ndarray, "N D"], theirs: Float32[np.ndarray, "N D"]
) -> Int[np.ndarray, " D"]:
    """Which of their columns each of ours is: the one that it goes up and down with."""
    width = ours.shape[1]
    alike = np.corrcoef(ours.T, theirs.T)[:width, width:]
    found = alike.argmax(1)
    if len({*found.tolist()}) < width or alike.max(1).min() < 0.9:
        raise ValueError("the two tables have nothing to do with each other")
    return found


def grow(folder: Path, data: Path, out: Path) -> None:
    """Write the model in `folder` with `VOCAB_SIZE` pieces."""
    config, weights = load_checkpoint(folder)
    teaches = read_e5()
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces, known = (
        [(piece, score) for piece, score in json.loads(t.to_str())["model"]["vocab"]]
        for t in (ours, teaches.tokenizer)
    )
    have = {piece for piece, _ in pieces}
    texts = {lang: lines[:COUNTED] for lang, lines in sample_texts(data).items()}
    shares = {lang: SHARES.get(lang, OTHERS) for lang in texts}
    used = count_pieces(teaches.tokenizer, texts, shares)
    missing = [i for i in np.argsort(-used) if known[i][0] not in have]
    chosen = missing[: VOCAB_SIZE - len(pieces)]

    table = teaches.network.embeddings.word.weight.numpy()
    place = {piece: i for i, (piece, _) in enumerate(known)}
    old = [place[piece] for piece, _ in pieces]
    order = match_dims(to_float(weights[TABLE]), table[old])
    grown = add_rows(weights, table[chosen][:, order])

    tokenizer = xlm_roberta_tokenizer(pieces + [known[i] for i in chosen])
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    save_compact(out, replace(config, vocab_size=VOCAB_SIZE), grown, files=files)


def add_rows(weights: Weights, rows: Float32[np.ndarray, "N D"]) -> Weights:
    """The weights with a longer token table; no adapter says anything of the new rows."""
    table, bank = weights[TABLE], weights[BANK]
    assert isinstance(table, Int8Matrix) and isinstance(bank, np.ndarray)
    more = quantise_rows(rows)
    longer = Int8Matrix(
        np.concatenate([table.values, more.values]), np.concatenate([table.scales, more.scales])
    )
    blank = np.zeros((len(bank), len(rows), bank.shape[2]), bank.dtype)
    return weights | {TABLE: longer, BANK: np.concatenate([bank, blank], 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="a folder that recipes/mini.py wrote")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/mini/grown"))
    options = parser.parse_args()
    grow(options.model, options.data, options.out)
