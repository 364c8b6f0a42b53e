"""The plan of a data source, which several phases use."""

import math
from collections.abc import Sequence

import numpy as np

from polyvec.train.data.batches import Mixture, plan_pairs
from polyvec.train.data.tokens import Spans, TokenIds
from recipes.mini.config import Budget

Source = tuple[str, float]
"""A file below the data folder without its ending, and its fraction of the steps."""


def source_steps(budget: Budget, share: float) -> int:
    """Number of steps of a source with this fraction of all steps, rounded up."""
    return math.ceil(share * budget.settings.steps)


def pair_source(
    texts: TokenIds,
    partners: TokenIds,
    targets: np.ndarray,
    weights: np.ndarray,
    budget: Budget,
    share: float = 1.0,
    *,
    negatives: Sequence[TokenIds] = (),
    spans: Spans = (),
) -> Mixture:
    """Pairs of one source, with a plan for its fraction of the budget's steps."""
    plan = plan_pairs(
        texts,
        partners,
        weights,
        steps=source_steps(budget, share),
        batch_tokens=budget.batch_tokens,
        seed=0,
    )
    return Mixture(
        texts=texts,
        partners=partners,
        targets=targets,
        negatives=negatives,
        spans=spans,
        plan=plan,
    )
