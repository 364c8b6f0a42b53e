"""Phase 4, stage 2: distillation of the whole backbone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from polyvec.network import Network
from polyvec.train.data.batches import Plan, language_weights, plan_by_weight
from polyvec.train.data.pairs import Pairs
from polyvec.train.data.tokens import TokenIds, embed_in_documents, tokenise
from polyvec.train.loop import StepFn, train
from polyvec.train.objectives import alternate, distillation
from polyvec.train.plot import plot_run
from recipes.mini.config import (
    CONFIG,
    DEVICE,
    DIM_WEIGHTS,
    HEADS,
    LANGUAGE_SHARES,
    PRECISION,
    Budget,
)
from recipes.mini.scores import score_bitext, score_sts, score_tydiqa
from recipes.mini.teacher import MAX_TEACHER_TOKENS, make_targets

DOCUMENT_PARTS = (2, 4, 8, 16, 32)
"""Numbers of texts in a long document. One of them is drawn at random."""

MIN_PART_TOKENS = 16
"""Minimum tokens of a text that becomes a part of a long document."""


def train_backbone(
    budget: Budget, tokenizer: Tokenizer, pairs: Pairs, data: Path, out: Path
) -> None:
    """Train the student to reproduce the teacher's embeddings, of texts and in documents."""
    network = Network(CONFIG).requires_grad_(False)
    network.load_state_dict(load_file(out / "start.safetensors"), strict=False)
    network.to(DEVICE)
    texts = tokenise(tokenizer, pairs.texts, max_tokens=MAX_TEACHER_TOKENS + 100)
    targets = make_targets(pairs, out / "teacher.npz")
    single = distil_texts(network, texts, targets, plan_texts(texts, pairs.langs, budget))
    in_documents = distil_in_documents(network, texts, targets, budget)
    share = budget.long_share
    step_fn = alternate(
        [single, in_documents], [1 - share, share], steps=budget.settings.steps, seed=0
    )
    network.embeddings.word.sparse = True
    network.precision = PRECISION
    if DEVICE == "cuda":
        for layer in network.layers:
            layer.compile(dynamic=True)

    # Compiling again for a few texts without gradients would take longer than encoding them.
    @torch.compiler.set_stance("force_eager")
    def evaluate() -> dict[str, float]:
        return (
            score_sts(network, tokenizer, data)
            | score_tydiqa(network, tokenizer, data, with_adapters=False)
            | score_bitext(network, tokenizer, data)
        )

    train(
        unfreeze_backbone(network),
        step_fn,
        budget.settings,
        out / "backbone",
        tables=["embeddings.word.weight"],
        evaluate=evaluate,
    )
    plot_run(out / "backbone")


def plan_texts(texts: TokenIds, langs: Sequence[str], budget: Budget) -> Plan:
    """Plan steps in which each language has its share."""
    return plan_by_weight(
        [len(text) for text in texts],
        language_weights(langs, 0.5, LANGUAGE_SHARES),
        steps=budget.settings.steps,
        batch_tokens=budget.batch_tokens,
        seed=0,
    )


def distil_texts(network: Network, texts: TokenIds, targets: np.ndarray, plan: Plan) -> StepFn:
    """Train text i towards `targets[i]`."""
    return distillation(
        network, texts, np.arange(len(texts)), targets, plan, dim_weights=DIM_WEIGHTS
    )


def distil_in_documents(
    network: Network, texts: TokenIds, targets: np.ndarray, budget: Budget
) -> StepFn:
    """Train texts inside long documents towards the same targets as alone.

    The documents may be longer than the teacher's maximum.
    """
    rng = np.random.default_rng(0)
    long_enough = np.flatnonzero([len(text) >= MIN_PART_TOKENS for text in texts])
    mean = np.mean([len(texts[i]) for i in long_enough[:10_000]]) * np.mean(DOCUMENT_PARTS)
    tokens = 1.2 * budget.long_share * budget.settings.steps * budget.batch_tokens
    count = int(tokens / mean)
    chosen = rng.choice(long_enough, count)
    documents, spans = embed_in_documents(
        [texts[i] for i in chosen], head=1, parts=rng.choice(DOCUMENT_PARTS, count), seed=0
    )
    plan = plan_by_weight(
        [len(document) for document in documents],
        np.ones(len(documents)),
        steps=budget.settings.steps,
        batch_tokens=budget.batch_tokens,
        seed=0,
    )
    return distillation(
        network, documents, chosen, targets, plan, spans=spans, dim_weights=DIM_WEIGHTS
    )


def unfreeze_backbone(network: Network) -> list[tuple[str, nn.Parameter]]:
    """Unfreeze all parameters except adapters and heads, and return them by name."""
    frozen = ("lora", *HEADS)
    learning = [(k, p) for k, p in network.named_parameters() if not any(w in k for w in frozen)]
    for _, parameter in learning:
        parameter.requires_grad_(True)
    return learning
