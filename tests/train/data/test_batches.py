"""Plans: shares, budgets, determinism, and exactly the rows that earlier versions planned."""

from itertools import pairwise

import numpy as np
import pytest

from polyvec.train.data.batches import (
    LazyPlan,
    Mixture,
    interleave_plans,
    language_weights,
    mix,
    plan_by_label,
    plan_by_language,
    plan_by_weight,
    plan_epochs,
    plan_pairs,
    plan_sources,
    rotate_languages,
)

LANGS = ["en", "en", "de", "de", "de", "fr", "fr", "fr"]
LENGTHS = [5, 9, 3, 7, 12, 4, 8, 6]
LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 2])


def as_lists(plan) -> list[list[int]]:
    return [[int(row) for row in rows] for rows in plan]


def test_plans_by_weight_are_those_of_earlier_versions() -> None:
    """A run that an earlier version began must resume with the same rows, here and below."""
    weights = language_weights(LANGS, 0.5, {"en": 0.5})
    plan = plan_by_weight(LENGTHS, weights, steps=6, batch_tokens=20, seed=3)
    assert as_lists(plan) == [[7, 3, 3], [4], [1, 1], [0, 0, 0, 7], [6, 6], [4]]
    halves = [np.zeros(length // 2, int) for length in LENGTHS]
    others = [np.zeros(length - length // 2, int) for length in LENGTHS]
    pairs = plan_pairs(halves, others, weights, steps=6, batch_tokens=20, seed=3)
    assert as_lists(pairs) == as_lists(plan)


def test_plans_by_label_are_those_of_earlier_versions() -> None:
    plan = plan_by_label(LENGTHS, LABELS, steps=5, batch_tokens=25, members=2, seed=3)
    assert as_lists(plan) == [[2, 4], [1, 0, 6, 7], [5, 7, 0, 1], [4, 3], [6, 5]]


def test_plans_by_language_are_those_of_earlier_versions() -> None:
    plans = [
        plan_by_language(LANGS, steps=6, batch_size=2, exponent=0.5, seed=3, shares=shares)
        for shares in (None, {"en": 0.4})
    ]
    assert as_lists(plans[0]) == [[4, 3], [5, 7], [1, 0], [6, 7], [2, 3], [0, 1]]
    assert as_lists(plans[1]) == [[1, 0], [2, 4], [5, 6], [1, 0], [3, 4], [7, 7]]


def test_epochs_are_those_of_earlier_versions() -> None:
    plan = plan_epochs(7, batch_size=3, epochs=2, seed=3)
    assert as_lists(plan) == [[5, 6, 2, 1], [4, 3, 0], [6, 0, 4, 1], [5, 2, 3]]


def test_lazy_plans_are_those_of_earlier_versions() -> None:
    parts = [np.arange(4), np.arange(4, 8)]
    plan = LazyPlan(parts=parts, weights=[1.0, 3.0], steps=5, batch_size=3, seed=3)
    expected = [[0, 2, 3], [7, 5, 6], [2, 1, 0], [2, 0, 3], [4, 6, 5]]
    assert as_lists(plan[step] for step in range(5)) == expected


def test_sources_alternate_as_in_earlier_versions() -> None:
    turns = plan_sources([1.0, 3.0], steps=8, seed=3)
    assert turns == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2), (1, 3), (0, 3)]
    plans = [[np.array([0, 1]), np.array([2])], [np.array([0])]]
    assert as_lists(interleave_plans(plans, [3, 5], seed=3)) == [[3], [2], [0, 1]]


def test_a_label_with_too_few_texts_for_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="no label has 4 texts"):
        plan_by_label(LENGTHS, LABELS, steps=5, batch_tokens=25, members=4, seed=3)


def make_source(name: int, size: int) -> Mixture:
    """Pairs whose token ids and targets tell their source and row."""
    ids = [np.array([name, row]) for row in range(size)]
    return Mixture(
        texts=ids,
        partners=[text + 100 for text in ids],
        targets=np.arange(size) + 1_000 * name,
        negatives=[[text + 200] for text in ids],
        spans=[(name, row) for row in range(size)],
        plan=plan_epochs(size, batch_size=3, epochs=2, seed=name),
    )


def test_a_step_of_a_mixture_is_a_step_of_one_source_with_all_its_columns() -> None:
    sources = [make_source(name, size) for name, size in ((1, 7), (2, 4), (3, 9))]
    mixture = mix(sources, seed=5)
    steps = []
    for rows in mixture.plan:
        names = {int(mixture.texts[row][0]) for row in rows}
        assert len(names) == 1
        steps.append((names.pop(), [int(mixture.texts[row][1]) for row in rows]))
        for row in rows:
            name, number = (int(part) for part in mixture.texts[row])
            assert mixture.partners[row].tolist() == [name + 100, number + 100]
            assert mixture.targets[row] == 1_000 * name + number
            assert mixture.negatives[row][0].tolist() == [name + 200, number + 200]
            assert mixture.spans[row] == (name, number)
    expected = [(n, as_lists([r])[0]) for n, s in enumerate(sources, 1) for r in s.plan]
    assert sorted(steps) == sorted(expected)
    assert steps != expected


def test_a_mixture_of_one_source_has_the_same_rows() -> None:
    source = make_source(1, 7)
    mixture = mix([source])
    assert sorted(as_lists(mixture.plan)) == sorted(as_lists(source.plan))
    assert mixture.targets.tolist() == source.targets.tolist()


def test_a_plan_is_a_function_of_its_seed() -> None:
    lengths, weights = list(range(1, 101)), np.ones(100)
    plans = [
        plan_by_weight(lengths, weights, steps=20, batch_tokens=300, seed=seed)
        for seed in (0, 0, 1)
    ]
    one, same, other = map(as_lists, plans)
    assert one == same != other


def test_a_plan_has_all_its_steps_and_keeps_to_its_budget() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, 5_000)
    plan = plan_by_weight(lengths.tolist(), rng.random(5_000), steps=400, batch_tokens=500, seed=0)
    assert len(plan) == 400
    assert max(int(lengths[rows].sum()) for rows in plan) <= 500 + 60
    assert np.mean([lengths[rows].sum() for rows in plan]) > 400


def test_rows_are_drawn_in_proportion_to_their_weights() -> None:
    weights = np.array([3.0] * 50 + [1.0] * 50)
    plan = plan_by_weight([10] * 100, weights, steps=500, batch_tokens=200, seed=0)
    counts = np.bincount(np.concatenate(plan), minlength=100)
    assert counts[:50].sum() / counts[50:].sum() == pytest.approx(3.0, rel=0.05)
    assert counts[:50].min() > 0.7 * counts[:50].max()


def test_each_step_of_interleaved_plans_reads_one_source() -> None:
    plans = [[np.array([0, 1]), np.array([2])], [np.array([0])]]
    steps = interleave_plans(plans, [3, 5], seed=0)
    assert sorted(map(tuple, steps)) == [(0, 1), (2,), (3,)]


def test_languages_alternate_and_get_their_shares() -> None:
    sizes = {"en": 4000, "de": 1000, "sw": 10, "zh": 2000}
    order = rotate_languages(sizes, steps=2000, exponent=0.5)
    total = sum(size**0.5 for size in sizes.values())
    for name, size in sizes.items():
        assert order.count(name) == pytest.approx(2000 * size**0.5 / total, abs=2)
    assert all(one != two for one, two in pairwise(order))


def test_a_fixed_share_is_kept() -> None:
    order = rotate_languages(
        {"en": 10, "de": 1, "fr": 1}, steps=500, exponent=1.0, shares={"en": 0.2}
    )
    assert order.count("en") == 100
    assert abs(order.count("de") - order.count("fr")) <= 1


def test_a_step_has_one_language_and_no_row_repeats_before_all_have_come() -> None:
    langs = ["en"] * 30 + ["de"] * 7
    plan = plan_by_language(langs, steps=40, batch_size=4, exponent=0.7, seed=0)
    assert all(len({langs[row] for row in rows}) == 1 for rows in plan)
    for lang, size in (("en", 30), ("de", 7)):
        drawn = [row for rows in plan if langs[rows[0]] == lang for row in rows]
        for start in range(0, len(drawn) - size, size):
            assert len(set(drawn[start : start + size])) == size


def test_every_row_is_read_once_per_epoch() -> None:
    plan = plan_epochs(50, batch_size=8, epochs=3, seed=0)
    assert len(plan) == 18
    for epoch in range(3):
        rows = np.concatenate(plan[6 * epoch : 6 * epoch + 6])
        assert sorted(rows) == list(range(50))
    assert not np.array_equal(plan[0], plan[6])


def test_sources_alternate_in_proportion_to_their_weights() -> None:
    turns = plan_sources([1.0, 3.0], steps=4_000, seed=0)
    counts = [sum(source == wanted for source, _ in turns) for wanted in (0, 1)]
    assert counts[1] / counts[0] == pytest.approx(3, rel=0.1)
    for wanted in (0, 1):
        assert [turn for source, turn in turns if source == wanted] == list(range(counts[wanted]))


def test_a_lazy_step_has_rows_of_one_part_without_repeats_and_is_repeatable() -> None:
    parts = [np.arange(30), np.arange(30, 36)]
    plan = LazyPlan(parts=parts, weights=[1.0, 3.0], steps=400, batch_size=8)
    second = 0
    for step in range(400):
        rows = plan[step]
        assert len({*rows.tolist()}) == len(rows) == (8 if rows[0] < 30 else 6)
        assert len({row < 30 for row in rows.tolist()}) == 1
        assert np.array_equal(rows, plan[step])
        second += rows[0] >= 30
    assert second / 400 == pytest.approx(0.75, abs=0.06)
    with pytest.raises(IndexError):
        plan[400]
    assert len(plan) == 400
