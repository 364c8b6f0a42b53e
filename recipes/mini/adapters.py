"""Phase 5, stage 3: one adapter per task, with the backbone frozen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from polyvec.network import Network
from polyvec.tasks import adapter_index
from polyvec.train.data.batches import Mixture, language_weights, mix, plan_by_label
from polyvec.train.data.pairs import (
    join_pairs,
    read_labelled_texts,
    read_pairs,
    sample_same_label,
)
from polyvec.train.data.tokens import tokenise
from polyvec.train.loop import StepFn
from polyvec.train.objectives import alternate, contrast, ordering, separation
from recipes.mini.config import ADAPTER_BUDGETS, CONFIG, DEVICE, LANGUAGE_SHARES, Budget
from recipes.mini.retrieval import retrieval
from recipes.mini.runs import load_network, train_part
from recipes.mini.scores import score_sts, score_tydiqa
from recipes.mini.sources import Source, pair_source, source_steps

SCORED_SOURCES: list[Source] = [("stsb", 0.7), ("jsts", 0.15), ("korsts", 0.15)]
"""Files of `adapters/text-matching/` with scored pairs."""

ENTAILMENT_SOURCES = ("nli_farstail", "nli_jnli", "nli_klue", "paraphrase_pawsx")
"""Files of `adapters/text-matching/` with labelled pairs. Each has a quarter of the steps."""

ENTAILMENT_SCORES = {"entailment": 1.0, "neutral": 0.5, "contradiction": 0.0, 1: 1.0, 0: 0.0}
"""Score of a pair by its label. The higher, the more the first text implies the second."""

CLASSIFICATION_SOURCES: list[Source] = [
    ("sib200", 0.35),
    ("afrisenti", 0.25),
    ("clinc150", 0.1),
    ("banking77", 0.1),
    ("nsmc", 0.05),
    ("wisesight", 0.05),
    ("xed", 0.05),
    ("nusax", 0.05),
]
"""Files of `adapters/classification/`."""

SEPARATION_SOURCES: list[Source] = [
    ("separation/arxiv", 0.45),
    ("separation/medquad", 0.1),
    ("separation/clinc150", 0.15),
    ("separation/banking77", 0.1),
    ("classification/sib200", 0.2),
]
"""Files of `adapters/`."""

MATCHING_TOKENS = 96
"""Maximum tokens of a text for the text-matching and the classification adapter."""

SEPARATION_TOKENS = 192
"""Maximum tokens of a text for the separation adapter."""


def train_adapter(name: str, tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """Train one adapter. The backbone stays bit for bit equal."""
    network, budget = load_network(out / "backbone").to(DEVICE), ADAPTER_BUDGETS[name]

    def evaluate() -> dict[str, float]:
        if name == "retrieval":
            return score_tydiqa(network, tokenizer, data)
        adapter_id = adapter_index(CONFIG.tasks, name)
        return score_sts(network, tokenizer, data, adapter_id=adapter_id)

    step_fn = OBJECTIVES[name](network, tokenizer, data, budget)
    run = out / "adapters" / name
    train_part(network, ["lora"], step_fn, budget.settings, run, evaluate)


def text_matching(network: Network, tokenizer: Tokenizer, data: Path, budget: Budget) -> StepFn:
    """CoSENT on scored pairs and on entailment, InfoNCE on translations; one of them per step.

    With scored pairs alone, all texts become similar, and translations are no longer found.
    """
    adapter_id = adapter_index(CONFIG.tasks, "text-matching")
    return alternate(
        [
            scored_pairs(network, tokenizer, data, budget, adapter_id),
            translations(network, tokenizer, data, budget, adapter_id),
            entailment(network, tokenizer, data, budget, adapter_id),
        ],
        [0.62, 0.3, 0.08],
        steps=budget.settings.steps,
        seed=0,
    )


def scored_pairs(
    network: Network, tokenizer: Tokenizer, data: Path, budget: Budget, adapter_id: int
) -> StepFn:
    """CoSENT on data sets for semantic textual similarity, with all languages mixed."""
    sources = []
    for name, share in SCORED_SOURCES:
        table = pq.read_table(data / f"adapters/text-matching/{name}.parquet").to_pydict()
        one, two = (
            tokenise(tokenizer, table[column], max_tokens=MATCHING_TOKENS)
            for column in ("text1", "text2")
        )
        weights = language_weights(table["lang"], 1.0, {})
        scores = np.array(table["score"], np.float32)
        sources.append(pair_source(one, two, scores, weights, budget, share))
    pairs = mix(sources)
    return ordering(
        network, pairs.texts, pairs.partners, pairs.targets, pairs.plan, adapter_id=adapter_id
    )


def translations(
    network: Network, tokenizer: Tokenizer, data: Path, budget: Budget, adapter_id: int
) -> StepFn:
    """InfoNCE on sentences and their translations."""
    pairs = join_pairs(
        [
            read_pairs(data / f"pairs/{name}.parquet", max_per_language=count * budget.data_scale)
            for name, count in (("tatoeba_en", 1_500), ("tatoeba_xy", 700), ("tico", 500))
        ]
    )
    one, two = (
        tokenise(tokenizer, side, max_tokens=MATCHING_TOKENS)
        for side in (pairs.texts, pairs.partners)
    )
    weights = language_weights(pairs.langs, 0.5, LANGUAGE_SHARES | {"en": 0.01})
    source = pair_source(one, two, pairs.groups, weights, budget)
    return contrast(
        network, one, two, pairs.groups, source.plan, adapter_ids=(adapter_id, adapter_id)
    )


def entailment(
    network: Network, tokenizer: Tokenizer, data: Path, budget: Budget, adapter_id: int
) -> StepFn:
    """CoSENT on pairs in which the first text implies the second, is neutral, or contradicts it."""
    sources = []
    for name in ENTAILMENT_SOURCES:
        table = pq.read_table(data / f"adapters/text-matching/{name}.parquet").to_pydict()
        sides = ("text1", "text2") if name.startswith("para") else ("premise", "hypothesis")
        one, two = (tokenise(tokenizer, table[side], max_tokens=MATCHING_TOKENS) for side in sides)
        scores = np.array([ENTAILMENT_SCORES[label] for label in table["label"]], np.float32)
        sources.append(pair_source(one, two, scores, np.ones(len(one)), budget, 1 / 4))
    pairs = mix(sources)
    return ordering(
        network, pairs.texts, pairs.partners, pairs.targets, pairs.plan, adapter_id=adapter_id
    )


def classification(network: Network, tokenizer: Tokenizer, data: Path, budget: Budget) -> StepFn:
    """InfoNCE on two texts of a class, with texts of other classes as negatives; and entailment.

    The adapter also encodes pairs of texts that are to be classified.
    """
    sources = []
    for name, share in CLASSIFICATION_SOURCES:
        labelled = read_labelled_texts(data / f"adapters/classification/{name}.parquet")
        texts = tokenise(tokenizer, labelled.texts, max_tokens=MATCHING_TOKENS)
        partners = [texts[i] for i in sample_same_label(labelled.labels, seed=0)]
        weights = language_weights(labelled.langs, 0.5, {})
        sources.append(pair_source(texts, partners, labelled.labels, weights, budget, share))
    adapter_id = adapter_index(CONFIG.tasks, "classification")
    pairs = mix(sources)
    classes = contrast(
        network,
        pairs.texts,
        pairs.partners,
        pairs.targets,
        pairs.plan,
        adapter_ids=(adapter_id, adapter_id),
    )
    entailed = entailment(network, tokenizer, data, budget, adapter_id)
    return alternate([classes, entailed], [0.85, 0.15], steps=budget.settings.steps, seed=0)


def separate_topics(network: Network, tokenizer: Tokenizer, data: Path, budget: Budget) -> StepFn:
    """CoSENT on labels of topics and intents; InfoNCE on titles and on translations.

    A step has four texts of each label of one source. Topics have no sharp borders, so the
    temperature is higher than in the paper, and a step compares more labels.
    """
    sources = []
    for name, share in SEPARATION_SOURCES:
        labelled = read_labelled_texts(data / f"adapters/{name}.parquet")
        texts = tokenise(tokenizer, labelled.texts, max_tokens=SEPARATION_TOKENS)
        plan = plan_by_label(
            [len(text) for text in texts],
            labelled.labels,
            steps=source_steps(budget, share),
            batch_tokens=budget.batch_tokens,
            members=4,
            seed=0,
        )
        sources.append(Mixture(texts=texts, targets=labelled.labels, plan=plan))
    adapter_id = adapter_index(CONFIG.tasks, "separation")
    labelled = mix(sources)
    topics = separation(
        network,
        labelled.texts,
        labelled.targets,
        labelled.plan,
        adapter_id=adapter_id,
        temperature=0.05,
    )
    translated = translations(network, tokenizer, data, budget, adapter_id)
    return alternate(
        [topics, titles(network, tokenizer, data, budget, adapter_id), translated],
        [0.65, 0.25, 0.1],
        steps=budget.settings.steps,
        seed=0,
    )


def titles(
    network: Network, tokenizer: Tokenizer, data: Path, budget: Budget, adapter_id: int
) -> StepFn:
    """InfoNCE on the titles of papers and their abstracts."""
    pairs = read_pairs(data / "pairs/arxiv.parquet", max_per_language=12_000)
    one, two = (
        tokenise(tokenizer, side, max_tokens=SEPARATION_TOKENS)
        for side in (pairs.texts, pairs.partners)
    )
    source = pair_source(one, two, pairs.groups, np.ones(len(one)), budget)
    return contrast(
        network, one, two, pairs.groups, source.plan, adapter_ids=(adapter_id, adapter_id)
    )


OBJECTIVES: dict[str, Callable[[Network, Tokenizer, Path, Budget], StepFn]] = {
    "text-matching": text_matching,
    "retrieval": retrieval,
    "classification": classification,
    "separation": separate_topics,
}
"""Makes the training objective of each adapter."""
