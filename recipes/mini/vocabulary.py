"""Phase 1: the pieces of XLM-RoBERTa's vocabulary that the texts use most."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from polyvec.train.init.tokenizer import common_pieces, count_pieces, xlm_roberta_tokenizer
from recipes.mini.config import CONFIG, PAPER_LANGUAGES, SMALLER_LANGUAGES

NUM_COMMON_PIECES = 80_000
"""Pieces that are chosen by `PIECE_WEIGHTS`. All 250,002 pieces would improve the model further
(docs/log.md), but need 60 MB more."""

PIECE_WEIGHTS = {**dict.fromkeys(PAPER_LANGUAGES, 4.0), "en": 6.0, "zh": 5.0, "ja": 5.0}
"""Weight of a language in the choice of the common pieces. The other four hundred have weight 1."""

MISSED_PIECE_WEIGHTS = dict.fromkeys(
    [*PAPER_LANGUAGES, *SMALLER_LANGUAGES, "en", "zh", "ja", "mn", "si"], 1.0
)
"""Weight of a language in the choice of the other pieces."""

OTHER_LANGUAGE_WEIGHT = 0.05
"""Weight of all other languages in that choice."""

MAX_COUNTED_TEXTS = 3_000
"""Texts per language in which the other pieces are counted."""

MAX_SAMPLE_TEXTS = 12_000
"""Texts per language in which the common pieces are counted."""


def choose_pieces(data: Path, tokenizer: Tokenizer) -> list[int]:
    """Ids of the pieces of the teacher's tokenizer that the student keeps.

    A language that loses many pieces needs twice the tokens, in combinations that the teacher
    never learnt. For this reason the last pieces are those that some seventy languages miss most.
    """
    sample = sample_texts(data)
    kept = common_pieces(tokenizer, sample, vocab_size=NUM_COMMON_PIECES, weights=PIECE_WEIGHTS)
    texts = {lang: lines[:MAX_COUNTED_TEXTS] for lang, lines in sample.items()}
    weights = {lang: MISSED_PIECE_WEIGHTS.get(lang, OTHER_LANGUAGE_WEIGHT) for lang in texts}
    known = {*kept}
    by_use = np.argsort(-count_pieces(tokenizer, texts, weights)).tolist()
    missed = [piece for piece in by_use if piece not in known]
    return kept + missed[: CONFIG.vocab_size - len(kept)]


def sample_texts(data: Path) -> dict[str, list[str]]:
    """Up to `MAX_SAMPLE_TEXTS` texts of every language, from all data with a language column."""
    texts: dict[str, list[str]] = defaultdict(list)
    sources = [(file, ("text",), "lang") for file in sorted((data / "text").glob("*.parquet"))]
    sources += [
        (data / f"pairs/{name}.parquet", ("query",), "query_lang")
        for name in ("tatoeba_en", "tatoeba_xy", "tico", "mintaka")
    ]
    sources += [
        (data / f"adapters/retrieval/{name}.parquet", ("positive", "query"), "lang")
        for name in ("squad", "tydiqa", "jsquad", "cmrc2018")
    ]
    sources += [
        (data / f"adapters/text-matching/{name}.parquet", ("text1", "text2"), "lang")
        for name in ("stsb", "jsts", "korsts")
    ]
    sources += [(data / "adapters/classification/sib200.parquet", ("text",), "lang")]
    for file, columns, lang in sources:
        table = pq.read_table(file, columns=[*columns, lang]).to_pydict()
        for column in columns:
            for name, text in zip(table[lang], table[column], strict=True):
                texts[name].append(text)
    english = pq.read_table(data / "pairs/tatoeba_en.parquet", columns=["positive"])
    texts["en"] += english["positive"].to_pylist()
    rng = np.random.default_rng(0)
    return {
        lang: [lines[i] for i in rng.permutation(len(lines))[:MAX_SAMPLE_TEXTS]]
        for lang, lines in texts.items()
        if lang not in ("not-used", "misc")
    }


def select_pieces(tokenizer: Tokenizer, kept: list[int]) -> Tokenizer:
    """A tokenizer with only the `kept` pieces of the teacher's tokenizer."""
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return xlm_roberta_tokenizer([tuple(pieces[i]) for i in kept])
