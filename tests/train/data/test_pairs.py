"""Pairs and labelled texts: reading, capping, joining."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvec.train.data.pairs import join_pairs, read_pairs, sample_same_label


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


def test_each_language_is_capped_and_the_seed_decides(pairs_file: Path) -> None:
    rows = read_pairs(pairs_file, max_per_language=2, seed=1)
    assert sorted(rows.langs) == ["de", "de", "fr", "fr"]
    assert rows.texts == read_pairs(pairs_file, max_per_language=2, seed=1).texts


def test_a_missing_column_is_named(pairs_file: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.parquet lacks the columns \['answer'\]"):
        read_pairs(pairs_file, partner="answer")


def test_groups_of_different_sources_stay_different(pairs_file: Path) -> None:
    rows = read_pairs(pairs_file)
    both = join_pairs([rows, rows])
    assert len(both) == 12
    assert not {*both.groups[:6]} & {*both.groups[6:]}
    assert both.take([7]).texts == ["q1"]


def test_partners_of_the_same_label_are_those_of_earlier_versions() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    assert sample_same_label(labels, seed=3).tolist() == [1, 0, 3, 4, 2, 7, 5, 6]
