"""Plans: the rows that each training step reads.

Every plan is a function of a seed. The rows of a step follow from the seed and the step's number,
so a resumed run reads exactly the rows that the uninterrupted run would have read, and no position
in the data has to be saved.

- `plan_by_weight`, `plan_pairs`, `plan_by_label` and `plan_by_language` plan the steps of one
  source.
- `plan_epochs` reads every row once per epoch.
- `LazyPlan` draws a step's rows on demand, for plans that are too long to hold in memory.
- `plan_sources` and `interleave_plans` let several sources alternate; `mix` joins their rows too.

Axes in this file: N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from polyvec.train.data.tokens import Spans, TokenIds

StepRows = Int[np.ndarray, " _rows"]
"""Numbers of the rows that one step reads."""

Plan = Sequence[StepRows]
"""The rows of every step."""


def language_weights(
    langs: Sequence[str], exponent: float, shares: Mapping[str, float]
) -> Float[np.ndarray, " N"]:
    """Sampling weight of each row; a language of n rows has a total in proportion to n ** exponent.

    `shares` fixes the total of a language, as a fraction of all weights. All rows of a language
    have the same weight.

    >>> language_weights(["en", "en", "de", "de", "de", "de"], 0.5, {"en": 0.5}).round(3).tolist()
    [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    """
    names, index, counts = np.unique(langs, return_inverse=True, return_counts=True)
    totals = counts.astype(float) ** exponent
    fixed = np.array([shares.get(str(name), np.nan) for name in names])
    free = np.isnan(fixed)
    totals[free] *= (1 - np.nansum(fixed)) / max(totals[free].sum(), 1e-9)
    totals[~free] = fixed[~free]
    return (totals / counts)[index]


def plan_by_weight(
    lengths: Sequence[int],
    weights: Float[np.ndarray, " N"],
    *,
    steps: int,
    batch_tokens: int,
    seed: int,
    pool: int = 32,
) -> list[StepRows]:
    """Plan steps of about `batch_tokens` tokens, each with texts of similar length.

    Rows are drawn in proportion to `weights`, and a row's repetitions are spread evenly over the
    run. The rows of `pool` steps are sorted by length together, so that a step mixes languages but
    wastes little on different lengths. The order of steps is random.
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths)
    share = weights / weights.sum()
    mean = float((share * sizes).sum())
    # Systematic sampling: a row repeats only after its weight has earned another draw.
    num_draws = int(1.1 * steps * batch_tokens / mean) + 1
    ticks = (np.arange(num_draws) + rng.random()) / num_draws
    order = rng.permutation(len(sizes))
    drawn = order[np.searchsorted(np.cumsum(share[order]), ticks).clip(max=len(order) - 1)]
    rng.shuffle(drawn)
    per_pool = max(1, int(pool * batch_tokens / mean))
    plan: list[np.ndarray] = []
    for start in range(0, len(drawn), per_pool):
        rows = drawn[start : start + per_pool]
        rows = rows[np.argsort(sizes[rows], kind="stable")]
        ends = np.searchsorted(np.cumsum(sizes[rows]), np.arange(1, pool * 2) * batch_tokens)
        batches = [part for part in np.split(rows, np.unique(ends)) if len(part)]
        plan += [batches[i] for i in rng.permutation(len(batches))]
    return plan[:steps]


def plan_pairs(
    texts: TokenIds,
    partners: TokenIds,
    weights: Float[np.ndarray, " N"],
    *,
    steps: int,
    batch_tokens: int,
    seed: int,
) -> list[StepRows]:
    """`plan_by_weight` for pairs: the length of a pair is the sum of its two texts' lengths."""
    lengths = [len(text) + len(partner) for text, partner in zip(texts, partners, strict=True)]
    return plan_by_weight(lengths, weights, steps=steps, batch_tokens=batch_tokens, seed=seed)


def plan_by_label(
    lengths: Sequence[int],
    labels: Int[np.ndarray, " N"],
    *,
    steps: int,
    batch_tokens: int,
    members: int,
    seed: int,
) -> list[StepRows]:
    """Plan steps of about `batch_tokens` tokens, with `members` texts of each of many labels.

    Every text is read once before any text is read again, except for the last few of a label,
    which do not fill a group of `members`. Raises ValueError if no label has `members` texts.
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths)
    plan: list[np.ndarray] = []
    while len(plan) < steps:
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        by_label = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        groups = [
            rows[start : start + members]
            for rows in by_label
            for start in range(0, len(rows) - members + 1, members)
        ]
        if not groups:
            raise ValueError(f"no label has {members} texts, so a step cannot compare texts of one")
        groups = [groups[i] for i in rng.permutation(len(groups))]
        step_of = np.cumsum([sizes[group].sum() for group in groups]) // batch_tokens
        for step in np.unique(step_of):
            plan.append(np.concatenate([groups[i] for i in np.flatnonzero(step_of == step)]))
    return plan[:steps]


def rotate_languages(
    sizes: Mapping[str, int],
    *,
    steps: int,
    exponent: float,
    shares: Mapping[str, float] | None = None,
) -> list[str]:
    """The language of every step. Languages alternate, and each gets its share of the steps.

    The share of a language with n texts is in proportion to n ** `exponent` (Conneau et al. 2020,
    section 3.1); `shares` fixes a language's fraction of all steps. No language has two steps in
    a row unless its share is more than a half.

    >>> turns = rotate_languages({"en": 900, "de": 100}, steps=4000, exponent=0.5)
    >>> round(turns.count("de") / 4000, 2)  # 10 of 10 + 30, the square roots of 100 and 900
    0.25
    """
    fixed = {name: share for name, share in (shares or {}).items() if name in sizes}
    free = {name: size**exponent for name, size in sizes.items() if name not in fixed}
    left = 1 - sum(fixed.values())
    parts = fixed | {name: left * part / sum(free.values()) for name, part in free.items()}
    credit = dict.fromkeys(parts, 0.0)
    chosen = []
    for _ in range(steps):
        for name, part in parts.items():
            credit[name] += part
        others = [name for name in parts if [name] != chosen[-1:] or credit[name] > 1]
        name = max(others or parts, key=credit.__getitem__)
        credit[name] -= 1
        chosen.append(name)
    return chosen


def plan_by_language(
    langs: Sequence[str],
    *,
    steps: int,
    batch_size: int,
    exponent: float,
    seed: int,
    shares: Mapping[str, float] | None = None,
) -> list[StepRows]:
    """Plan steps of `batch_size` rows, each step in one language (`rotate_languages`).

    The rows of a language come in random order, and all of them come before any comes again.
    """
    rows: dict[str, list[int]] = {}
    for row, lang in enumerate(langs):
        rows.setdefault(lang, []).append(row)
    sizes = {lang: len(own) for lang, own in rows.items()}
    order = rotate_languages(sizes, steps=steps, exponent=exponent, shares=shares)
    rng = np.random.default_rng(seed)
    waiting = {lang: np.empty(0, np.int64) for lang in rows}
    plan = []
    for lang in order:
        while len(waiting[lang]) < batch_size:
            waiting[lang] = np.append(waiting[lang], rng.permutation(rows[lang]))
        plan.append(waiting[lang][:batch_size])
        waiting[lang] = waiting[lang][batch_size:]
    return plan


def plan_epochs(num_rows: int, *, batch_size: int, epochs: int, seed: int) -> list[StepRows]:
    """Plan steps of about `batch_size` rows that read every row once per epoch.

    Each epoch has its own random order.

    >>> sorted(int(row) for rows in plan_epochs(5, batch_size=2, epochs=1, seed=0) for row in rows)
    [0, 1, 2, 3, 4]
    """
    rng = np.random.default_rng(seed)
    steps = max(1, round(num_rows / batch_size))
    return [
        part for _ in range(epochs) for part in np.array_split(rng.permutation(num_rows), steps)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyPlan(Sequence[StepRows]):
    """A plan that draws the rows of a step on demand, from one part of the data at random.

    A part has one source and one language (arXiv:2409.10173, section 4.2). No row occurs twice
    within a step.
    """

    parts: Sequence[StepRows]
    """Row numbers of each part."""

    weights: Sequence[float]
    """The frequency with which each part is drawn, relative to the others."""

    steps: int
    """Length of the plan."""

    batch_size: int
    """Rows per step. A part with fewer rows gives all of them."""

    seed: int = 0
    """Each seed gives another plan."""

    def __len__(self) -> int:
        return self.steps

    # `Sequence` also allows slices, which no caller needs.
    def __getitem__(self, step: int) -> StepRows:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The rows of one step. Raises IndexError beyond the last step."""
        if not 0 <= step < self.steps:
            raise IndexError(f"the plan has {self.steps} steps, so there is no step {step}")
        rng = np.random.default_rng([self.seed, step])
        odds = np.asarray(self.weights) / np.sum(self.weights)
        part = self.parts[rng.choice(len(self.parts), p=odds)]
        return rng.choice(part, min(self.batch_size, len(part)), replace=False)


def plan_sources(weights: Sequence[float], *, steps: int, seed: int) -> list[tuple[int, int]]:
    """The source of every step, and the number of earlier steps with the same source.

    Sources are drawn at random in proportion to `weights`.

    >>> plan_sources([1.0, 3.0], steps=5, seed=0)
    [(1, 0), (1, 1), (0, 0), (0, 1), (1, 2)]
    """
    share = np.asarray(weights, float)
    chosen = np.random.default_rng(seed).choice(len(share), size=steps, p=share / share.sum())
    turns, counts = [], [0] * len(share)
    for source in chosen.tolist():
        turns.append((source, counts[source]))
        counts[source] += 1
    return turns


def interleave_plans(plans: Sequence[Plan], sizes: Sequence[int], *, seed: int) -> list[StepRows]:
    """The steps of all plans in random order.

    Plan i numbers the rows of source i, which has `sizes[i]` rows; the result numbers the rows of
    all sources joined in this order.
    """
    offsets = np.cumsum([0, *sizes[:-1]])
    steps = [rows + off for plan, off in zip(plans, offsets, strict=True) for rows in plan]
    return [steps[i] for i in np.random.default_rng(seed).permutation(len(steps))]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """Tokenised examples of one source or several, and the plan by which steps read them.

    A step reads examples of one source, so examples of different sources never meet.
    """

    texts: TokenIds
    """The text of each example; of a pair, the first text."""

    targets: Shaped[np.ndarray, " N"]
    """The group, the label or the score of each example, as the objective requires."""

    plan: Plan
    """The examples of every step, as positions in `texts`."""

    partners: TokenIds = ()
    """The second text of each pair; empty if examples are single texts."""

    negatives: Sequence[TokenIds] = ()
    """The hard negatives of each pair; empty if the source has none."""

    spans: Spans = ()
    """The part of each partner that answers; empty if the whole partner does."""


def mix(sources: Sequence[Mixture], *, seed: int = 0) -> Mixture:
    """Join the examples of all sources, and let their steps alternate in random order.

    All sources must have the same columns.
    """
    sizes = [len(source.texts) for source in sources]
    return Mixture(
        texts=[text for source in sources for text in source.texts],
        partners=[text for source in sources for text in source.partners],
        targets=np.concatenate([source.targets for source in sources]),
        negatives=[texts for source in sources for texts in source.negatives],
        spans=[span for source in sources for span in source.spans],
        plan=interleave_plans([source.plan for source in sources], sizes, seed=seed),
    )
