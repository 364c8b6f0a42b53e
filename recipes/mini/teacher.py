"""Phase 2: the texts of the backbone, and the teacher's embeddings of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from polyvec.train.data.pairs import Pairs, join_pairs, read_pairs
from polyvec.train.init.bert import Teacher, order_dims
from recipes.mini.config import CONFIG, DEVICE

MAX_TEACHER_TOKENS = 384
"""Maximum tokens of a text for the teacher, which has 512 positions."""

TRANSLATED_TEXTS = {
    "tatoeba_en": 245,
    "tico": 135,
    "mintaka": 165,
    "tldr": 65,
    "opensource_guide": 80,
    "msdocs_blocks": 65,
    "fastapi": 80,
}
"""Files of `pairs/` with texts and their English translations, and the number per language."""

SINGLE_TEXTS: list[tuple[str, str, str, int]] = [
    ("pairs/tatoeba_en", "positive", "positive_lang", 4_000),
    ("pairs/msdocs_blocks", "positive", "positive_lang", 2_000),
    ("text/msdocs", "text", "lang", 30),
    ("text/udhr", "text", "lang", 5),
    ("text/nllb_seed", "text", "lang", 135),
    ("text/bible", "text", "lang", 65),
    ("text/pb_source", "text", "lang", 150),
    ("text/common_voice", "text", "lang", 160),
    ("text/nsmc", "text", "lang", 440),
    ("text/wisesight", "text", "lang", 440),
    ("adapters/text-matching/stsb", "text1", "lang", 825),
    ("adapters/classification/sib200", "text", "lang", 30),
    ("adapters/classification/afrisenti", "text", "lang", 80),
    ("adapters/classification/clinc150", "text", "lang", 1_100),
    ("adapters/retrieval/tydiqa", "query", "lang", 500),
    ("adapters/retrieval/tydiqa", "positive", "lang", 450),
    ("adapters/retrieval/squad", "query", "lang", 825),
    ("adapters/retrieval/squad", "positive", "lang", 550),
    ("adapters/retrieval/jsquad", "positive", "lang", 275),
    ("adapters/retrieval/cmrc2018", "positive", "lang", 275),
    ("adapters/retrieval/medquad", "positive", "lang", 385),
    ("pairs/mlqa_dev", "positive", "positive_lang", 135),
    ("pairs/arxiv", "query", "query_lang", 825),
    ("pairs/arxiv", "positive", "query_lang", 660),
]
"""Texts without a translation: file, text column, language column, and number per language."""


def read_backbone_pairs(data: Path, data_scale: int = 1) -> Pairs:
    """Read the texts of the backbone. A text without a translation is its own partner.

    A quarter of the texts without a translation has the instruction of a query, and a quarter has
    that of a passage.
    """
    translated = [
        read_pairs(data / f"pairs/{name}.parquet", max_per_language=count * data_scale)
        for name, count in TRANSLATED_TEXTS.items()
    ]
    single = join_pairs(
        [
            read_pairs(
                data / f"{name}.parquet",
                text=column,
                partner=column,
                lang=lang,
                max_per_language=count * data_scale,
            )
            for name, column, lang, count in SINGLE_TEXTS
        ]
    )
    prompts = ["", "", *(task.prompt for task in CONFIG.tasks[:2])]
    texts = [prompts[i % 4] + text for i, text in enumerate(single.texts)]
    return join_pairs([*translated, replace(single, texts=texts, partners=texts)])


def distinct_texts(pairs: Pairs) -> list[str]:
    """All distinct texts of both sides, in the order of the teacher's embeddings."""
    return [*dict.fromkeys([*pairs.texts, *pairs.partners])]


def write_teacher(pairs: Pairs, teacher: Teacher, file: Path) -> None:
    """Write the teacher's embeddings of all texts, their mean, and an order of the dimensions."""
    teacher.network.to(DEVICE)
    vectors = teacher.encode(distinct_texts(pairs), max_tokens=MAX_TEACHER_TOKENS, bf16=True)
    teacher.network.cpu()
    mean = vectors.mean(0)
    order = order_dims(_unit(vectors - mean))
    np.savez(file, vectors=vectors.astype(np.float16), mean=mean, order=order)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_targets(pairs: Pairs, file: Path) -> np.ndarray:
    """The embedding that the student should reproduce for each pair's first text.

    It is the midpoint of the teacher's embeddings of the text and its partner. E5 puts all texts
    into a narrow cone; after subtracting the mean, unrelated texts are orthogonal.
    """
    made = np.load(file)
    vectors = _unit(made["vectors"].astype(np.float32) - made["mean"])[:, made["order"]]
    number = {text: i for i, text in enumerate(distinct_texts(pairs))}
    texts, partners = ([number[t] for t in side] for side in (pairs.texts, pairs.partners))
    return _unit(vectors[texts] + vectors[partners]).astype(np.float16)
