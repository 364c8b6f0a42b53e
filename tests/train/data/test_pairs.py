"""Which rows a step reads."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from polyvec.train.data.pairs import interleave, join, plan_batches, read_pairs, token_ids


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Six pairs in two languages and three groups."""
    table = {
        "query": [f"q{i}" for i in range(6)],
        "positive": [f"p{i}" for i in range(6)],
        "query_lang": ["de", "de", "de", "de", "fr", "fr"],
        "group": ["a", "b", "a", "c", "b", "a"],
    }
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet"


def test_rows_keep_their_partners_and_groups(pairs_file: Path) -> None:
    rows = read_pairs(pairs_file)
    assert list(zip(rows.texts, rows.partners, strict=True))[4] == ("q4", "p4")
    assert (rows.groups == np.array([0, 1, 0, 2, 1, 0])).all()


def test_a_language_is_capped_and_the_choice_is_the_seeds(pairs_file: Path) -> None:
    rows = read_pairs(pairs_file, most=2, seed=1)
    assert sorted(rows.langs) == ["de", "de", "fr", "fr"]
    assert rows.texts == read_pairs(pairs_file, most=2, seed=1).texts


def test_a_missing_column_is_named(pairs_file: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.parquet lacks the columns \['answer'\]"):
        read_pairs(pairs_file, partner="answer")


def test_groups_of_different_sources_stay_apart(pairs_file: Path) -> None:
    rows = read_pairs(pairs_file)
    both = join([rows, rows])
    assert len(both) == 12
    assert not {*both.groups[:6]} & {*both.groups[6:]}
    assert both.take([7]).texts == ["q1"]


def test_a_plan_is_a_function_of_its_seed() -> None:
    lengths, weights = list(range(1, 101)), np.ones(100)
    plans = [
        plan_batches(lengths, weights, steps=20, batch_tokens=300, seed=seed) for seed in (0, 0, 1)
    ]
    as_lists = [[rows.tolist() for rows in plan] for plan in plans]
    assert as_lists[0] == as_lists[1] != as_lists[2]


def test_a_plan_has_all_its_steps_and_keeps_to_its_budget() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, 5_000)
    plan = plan_batches(lengths.tolist(), rng.random(5_000), steps=400, batch_tokens=500, seed=0)
    assert len(plan) == 400
    assert max(int(lengths[rows].sum()) for rows in plan) <= 500 + 60
    assert np.mean([lengths[rows].sum() for rows in plan]) > 400


def test_rows_are_drawn_as_often_as_they_weigh() -> None:
    weights = np.array([3.0] * 50 + [1.0] * 50)
    plan = plan_batches([10] * 100, weights, steps=500, batch_tokens=200, seed=0)
    counts = np.bincount(np.concatenate(plan), minlength=100)
    assert counts[:50].sum() / counts[50:].sum() == pytest.approx(3.0, rel=0.05)
    assert counts[:50].min() > 0.7 * counts[:50].max()


def test_each_step_reads_one_source() -> None:
    plans = [[np.array([0, 1]), np.array([2])], [np.array([0])]]
    steps = interleave(plans, [3, 5], seed=0)
    assert sorted(map(tuple, steps)) == [(0, 1), (2,), (3,)]


def test_long_texts_are_cut_and_keep_their_end(tokenizer_file: Path) -> None:
    core = Tokenizer.from_file(str(tokenizer_file))
    whole, cut = (
        token_ids(core, ["the lazy dog " * 9], max_tokens=size, prompt="fox ")[0]
        for size in (500, 12)
    )
    assert len(cut) == 12 < len(whole)
    assert cut[-1] == whole[-1] == 2
    assert (cut[:11] == whole[:11]).all()
