"""Pairs and labelled texts: reading, capping, joining."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvec.records import BadRow
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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*gone\.parquet"):
        read_pairs(tmp_path / "gone.parquet")


def test_pairs_without_a_text_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    columns = {
        "query": ["a", None, "c", " ", "e"],
        "positive": ["u", "v", "", "x", "y"],
        "query_lang": ["en"] * 5,
        "group": [1.0, 1.0, 2.0, 2.0, None],
        "negatives": [["n", "", None], [], None, [], ["m"]],
    }
    pq.write_table(pa.table(columns), path)
    bad: list[BadRow] = []
    rows = read_pairs(path, report=bad.append)
    assert (rows.texts, rows.partners) == (["a", "e"], ["u", "y"])
    assert rows.negatives == [["n"], ["m"]]
    assert len({*rows.groups.tolist()}) == 2
    assert sorted(str(row) for row in bad) == [
        f"{path}, row 2: query is missing",
        f"{path}, row 3: positive is empty",
        f"{path}, row 4: query is empty",
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.null(), pa.large_string()])
def test_a_file_without_rows_has_no_pairs(kind: pa.DataType, tmp_path: Path) -> None:
    columns = {name: pa.array([], kind) for name in ("query", "positive", "query_lang")}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    assert len(read_pairs(tmp_path / "pairs.parquet", max_per_language=2)) == 0


def test_groups_of_different_sources_stay_different(pairs_file: Path) -> None:
    rows = read_pairs(pairs_file)
    both = join_pairs([rows, rows])
    assert len(both) == 12
    assert not {*both.groups[:6]} & {*both.groups[6:]}
    assert both.take([7]).texts == ["q1"]


def test_partners_of_the_same_label_are_those_of_earlier_versions() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    assert sample_same_label(labels, seed=3).tolist() == [1, 0, 3, 4, 2, 7, 5, 6]
