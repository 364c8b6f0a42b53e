"""Data and objectives of the retrieval adapters: questions and passages, alone or in documents."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from polyvec.network import Network
from polyvec.train.data.batches import Mixture, language_weights, mix
from polyvec.train.data.pairs import Pairs, read_pairs, sample_same_label
from polyvec.train.data.tokens import embed_in_documents, tokenise
from polyvec.train.loop import StepFn
from polyvec.train.objectives import alternate, contrast
from recipes.mini.backbone import DOCUMENT_PARTS
from recipes.mini.config import (
    PASSAGE_ADAPTER,
    PASSAGE_PROMPT,
    QUERY_ADAPTER,
    QUERY_PROMPT,
    Budget,
)
from recipes.mini.sources import Source, pair_source

QUESTION_SOURCES: list[Source] = [
    ("adapters/retrieval/tydiqa", 0.22),
    ("adapters/retrieval/squad", 0.13),
    ("pairs/mlqa_dev", 0.2),
    ("pairs/msdocs_heading", 0.05),
    ("adapters/retrieval/jsquad", 0.06),
    ("adapters/retrieval/cmrc2018", 0.06),
    ("adapters/retrieval/facqa", 0.04),
    ("adapters/retrieval/afriqa", 0.05),
    ("adapters/retrieval/medquad", 0.04),
]

CROSS_LINGUAL_SOURCES: list[Source] = [("pairs/msdocs_heading", 0.15)]
"""Sources whose groups have a passage in many languages. Question and passage get two of them."""

DOCUMENT_SOURCES: list[Source] = [
    ("adapters/retrieval/squad", 0.5),
    ("adapters/retrieval/jsquad", 0.2),
    ("adapters/retrieval/cmrc2018", 0.2),
    ("adapters/retrieval/medquad", 0.1),
]
"""Sources whose passages are embedded in long documents."""

MAX_PAIRS_PER_LANGUAGE = 1_500
"""Pairs per language of a question source, before the budget's factor."""

MAX_DOCUMENTS_PER_LANGUAGE = 8_000
"""Pairs per language of a document source."""

MAX_QUESTION_TOKENS = 64
MAX_PASSAGE_TOKENS = 160

MAX_NEGATIVES = 2
"""Hard negatives of a pair that are used."""

LONG_STEP_FACTOR = 3
"""A step with long documents has this many times the tokens of another step, so that it has enough
documents."""


def retrieval(network: Network, tokenizer: Tokenizer, data: Path, budget: Budget) -> StepFn:
    """Questions find their passages. Questions and passages have their own adapters."""
    pairs = question_pairs(tokenizer, data, budget)
    single = contrast(
        network,
        pairs.texts,
        pairs.partners,
        pairs.targets,
        pairs.plan,
        adapter_ids=(QUERY_ADAPTER, PASSAGE_ADAPTER),
        negatives=pairs.negatives,
    )
    in_documents = find_in_documents(network, tokenizer, data, budget)
    share = budget.long_share
    return alternate(
        [single, in_documents], [1 - share, share], steps=budget.settings.steps, seed=0
    )


def question_pairs(tokenizer: Tokenizer, data: Path, budget: Budget) -> Mixture:
    """Questions with passages that answer them, and hard negatives."""
    sources = []
    for name, share in [*QUESTION_SOURCES, *CROSS_LINGUAL_SOURCES]:
        lang = "lang" if name.startswith("adapters") else "query_lang"
        limit = MAX_PAIRS_PER_LANGUAGE * budget.data_scale
        pairs = read_pairs(data / f"{name}.parquet", lang=lang, max_per_language=limit)
        shares = {}
        if (name, share) in CROSS_LINGUAL_SOURCES:
            pairs, shares = cross_languages(pairs), {"en": 0.3}
        hard = [texts[:MAX_NEGATIVES] for texts in pairs.negatives]
        questions = tokenise(
            tokenizer, pairs.texts, max_tokens=MAX_QUESTION_TOKENS, prompt=QUERY_PROMPT
        )
        passages, negatives = (
            tokenise(tokenizer, texts, max_tokens=MAX_PASSAGE_TOKENS, prompt=PASSAGE_PROMPT)
            for texts in (pairs.partners, [text for texts in hard for text in texts])
        )
        ids = iter(negatives)
        sources.append(
            pair_source(
                questions,
                passages,
                pairs.groups,
                language_weights(pairs.langs, 0.5, shares),
                budget,
                share,
                negatives=[[next(ids) for _ in texts] for texts in hard],
            )
        )
    return mix(sources)


def cross_languages(pairs: Pairs) -> Pairs:
    """Pair each question with its passage in another language; for a third of them, in English.

    A step then has wrong passages in the question's own language, and the right passage in
    another. E5 prefers a vaguely related English passage to a Japanese one with the answer.
    """
    counts = Counter(zip(pairs.groups.tolist(), pairs.langs, strict=True))
    # If a language occurs twice, the group is a whole document, with passages on other questions.
    vague = {group for (group, _), count in counts.items() if count > 1}
    pairs = pairs.take([i for i, group in enumerate(pairs.groups.tolist()) if group not in vague])
    partners = sample_same_label(pairs.groups, seed=0)
    english = {pairs.groups[i]: i for i, lang in enumerate(pairs.langs) if lang == "en"}
    for i in range(0, len(pairs), 3):
        partners[i] = english.get(pairs.groups[i], partners[i])
    return replace(pairs, partners=[pairs.partners[i] for i in partners])


def find_in_documents(network: Network, tokenizer: Tokenizer, data: Path, budget: Budget) -> StepFn:
    """Questions find the long document that contains their passage, or the passage's own part.

    Half of the questions train retrieval of long documents, and the others train late chunking.
    """
    head = len(tokenizer.encode(PASSAGE_PROMPT).ids) - 1
    rng = np.random.default_rng(0)
    longer = replace(budget, batch_tokens=LONG_STEP_FACTOR * budget.batch_tokens)
    sources = []
    for name, share in DOCUMENT_SOURCES:
        pairs = read_pairs(
            data / f"{name}.parquet", lang="lang", max_per_language=MAX_DOCUMENTS_PER_LANGUAGE
        )
        # The passages that fill the documents answer none of the questions.
        even, odd = (pairs.take(np.flatnonzero(pairs.groups % 2 == n).tolist()) for n in (0, 1))
        questions = tokenise(
            tokenizer, even.texts, max_tokens=MAX_QUESTION_TOKENS, prompt=QUERY_PROMPT
        )
        passages, filling = (
            tokenise(tokenizer, side.partners, max_tokens=MAX_PASSAGE_TOKENS, prompt=PASSAGE_PROMPT)
            for side in (even, odd)
        )
        parts = rng.choice(DOCUMENT_PARTS, len(passages))
        documents, passage_spans = embed_in_documents(
            passages, head=head, parts=parts, seed=0, among=filling
        )
        spans = [
            span if number % 2 else (0, len(document))
            for number, (span, document) in enumerate(zip(passage_spans, documents, strict=True))
        ]
        sources.append(
            pair_source(
                questions,
                documents,
                even.groups,
                np.ones(len(questions)),
                longer,
                share,
                spans=spans,
            )
        )
    mixture = mix(sources)
    return contrast(
        network,
        mixture.texts,
        mixture.partners,
        mixture.targets,
        mixture.plan,
        adapter_ids=(QUERY_ADAPTER, PASSAGE_ADAPTER),
        spans=mixture.spans,
    )
