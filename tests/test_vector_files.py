"""Files of rows with their vectors; tests/cli has the same of `polyvec embed`."""

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvec.records import BadRow, Row, read_files, text_columns
from polyvec.terminal import json_line
from polyvec.vector_files import ROWS_SUFFIX, WRITERS, write_vectors


def as_rows(*records: dict) -> list[Row]:
    return [Row(record) for record in records]


def written(path: Path, *windows: list[Row]) -> pa.Table:
    """The Parquet file of some rows."""
    vectors = [(rows, np.ones((len(rows), 2), np.float32)) for rows in windows]
    assert write_vectors(vectors, path, "parquet", 2) == sum(map(len, windows))
    return pq.read_table(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_windows_of_vectors_become_one_file(kind: str, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    records = [{"text": f"text {i}", "id": i} for i in range(5)]
    rows, path = as_rows(*records), tmp_path / "out"
    windows = ((rows[i : i + 2], vectors[i : i + 2]) for i in (0, 2, 4))
    assert write_vectors(windows, path, kind, 3) == 5
    if kind == "npy":
        got = np.load(path)
        lines = (tmp_path / f"out{ROWS_SUFFIX}").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
    elif kind == "parquet":
        table = pq.read_table(path)
        assert table.select(["text", "id"]).to_pylist() == records
        got = np.array(table["embedding"].to_pylist(), np.float32)
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        got = np.array([line.pop("embedding") for line in lines], np.float32)
        assert lines == records
    np.testing.assert_array_equal(got, vectors)
    assert len(list(tmp_path.iterdir())) == (2 if kind == "npy" else 1)


@pytest.mark.parametrize("kind", WRITERS)
def test_without_a_row_there_is_no_file_and_an_older_one_stays(kind: str, tmp_path: Path) -> None:
    (tmp_path / "older").write_bytes(b"older")
    for name in ("older", "new"):
        assert write_vectors([], tmp_path / name, kind, 3) == 0
    assert (tmp_path / "older").read_bytes() == b"older"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_an_error_leaves_an_older_file_as_it_was(kind: str, tmp_path: Path) -> None:
    def windows():
        yield as_rows({"text": "fox"}), np.ones((1, 2), np.float32)
        raise ValueError("the source is damaged")

    (tmp_path / "out").write_bytes(b"older")
    with pytest.raises(ValueError, match="the source is damaged"):
        write_vectors(windows(), tmp_path / "out", kind, 2)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


def test_values_that_json_lacks_are_written_as_texts(tmp_path: Path) -> None:
    record = {
        "text": "fox",
        "day": date(2026, 1, 31),
        "moment": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "raw": b"\xff\x00",
        "array": np.array([1, 2]),
        "price": Decimal("1.20"),
    }
    expected = {
        "text": "fox",
        "day": "2026-01-31",
        "moment": "2026-01-31T12:00:00+00:00",
        "raw": "/wA=",
        "array": [1, 2],
        "price": "1.20",
    }
    write_vectors([(as_rows(record), np.ones((1, 2), np.float32))], tmp_path / "out", "jsonl", 2)
    assert json.loads((tmp_path / "out").read_text()) == {**expected, "embedding": [1, 1]}
    assert json.loads(json_line(record)) == expected


def test_every_type_of_arrow_comes_back_from_parquet(tmp_path: Path) -> None:
    times = [datetime(2026, 1, 31, 12, i, tzinfo=UTC) for i in range(4)]
    columns = {
        "text": pa.array(["a", "b", "", "d"], pa.large_string()),
        "id": pa.array([1, 2, None, 4], pa.int16()),
        "large": pa.array([2**63, 1, 2, 3], pa.uint64()),
        "half": pa.array(np.array([0.5, 1, 2, 3], np.float16)),
        "label": pa.array(["x", "y", "x", None], pa.dictionary(pa.int8(), pa.string())),
        "price": pa.array(
            [Decimal("1.20"), None, Decimal("0.00"), Decimal("-1.00")], pa.decimal128(9, 2)
        ),
        "day": pa.array([date(2026, 1, 31)] * 4),
        "moment": pa.array(times, pa.timestamp("ms", tz="Europe/Berlin")),
        "clock": pa.array([time(12, 30)] * 4, pa.time32("s")),
        "span": pa.array([timedelta(seconds=1)] * 4, pa.duration("us")),
        "raw": pa.array([b"\xff", b"", None, b"a"], pa.binary()),
        "tags": pa.array([["a"], [], None, ["b", None]], pa.list_(pa.string())),
        "pairs": pa.array([[("k", 1)]] * 4, pa.map_(pa.string(), pa.int32())),
        "nested": pa.array(
            [{"n": 1, "s": "x"}, None, {"n": None, "s": ""}, {"n": 2, "s": "y"}],
            pa.struct({"n": pa.int8(), "s": pa.string()}),
        ),
        "flag": pa.array([True, None, False, True]),
        "nothing": pa.nulls(4),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=3)
    bad: list[BadRow] = []
    rows = list(
        read_files([tmp_path / "in.parquet"], text_columns("text", "id"), report=bad.append)
    )
    assert [row.number for row in bad] == [3]
    found = written(tmp_path / "out.parquet", rows[:2], rows[2:]).drop_columns(["embedding"])
    source = pq.read_table(tmp_path / "in.parquet")
    assert found.schema.types == source.schema.types
    assert found.equals(source.take([0, 1, 3]))


def test_rows_of_different_files_share_their_columns(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": pa.array([1], pa.int8()), "text": ["a"]}), tmp_path / "a.parquet"
    )
    pq.write_table(
        pa.table({"id": pa.array([300], pa.int64()), "text": ["b"]}), tmp_path / "b.parquet"
    )
    (tmp_path / "c.jsonl").write_text('{"text": "c", "tags": ["x"]}\n"d"\n')
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.jsonl")]
    rows = list(read_files(paths, text_columns()))
    found = written(tmp_path / "out.parquet", rows).drop_columns(["embedding"])
    assert found.schema.field("id").type == pa.int64()
    assert found.to_pylist() == [
        {"id": 1, "text": "a", "tags": None},
        {"id": 300, "text": "b", "tags": None},
        {"id": None, "text": "c", "tags": ["x"]},
        {"id": None, "text": "d", "tags": None},
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], [1, 2]),
        ([1, 2.5], [1.0, 2.5]),
        ([1, "b"], ["1", "b"]),
        ([None, "b"], [None, "b"]),
        ([True, 2], ["true", "2"]),
        ([2**70, 1], [str(2**70), "1"]),
        ([{}, {"a": 1}], [{"a": None}, {"a": 1}]),
        ([{}, None], ["{}", None]),
        ([{"a": 1}, {"b": "ü"}], [{"a": 1, "b": None}, {"a": None, "b": "ü"}]),
        ([{"a": 1}, {"a": "x"}], ['{"a": 1}', '{"a": "x"}']),
        ([[1], "b"], ["[1]", "b"]),
        ([[], [1]], [[], [1]]),
    ],
)
@pytest.mark.parametrize("num_windows", [1, 2])
def test_values_of_json_keep_what_they_say(
    values: list, expected: list, num_windows: int, tmp_path: Path
) -> None:
    rows = as_rows(*({"text": "a", "x": value} for value in values))
    windows = [rows] if num_windows == 1 else [rows[:1], rows[1:]]
    assert written(tmp_path / "out.parquet", *windows)["x"].to_pylist() == expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_called_embedding_is_kept(kind: str, tmp_path: Path) -> None:
    windows = [(as_rows({"text": "a", "embedding": "old"}), np.ones((1, 2), np.float32))]
    write_vectors(windows, tmp_path / "out", kind, 2)
    path = tmp_path / "out"
    [row] = [json.loads(path.read_text())] if kind == "jsonl" else pq.read_table(path).to_pylist()
    assert row == {"text": "a", "given_embedding": "old", "embedding": [1, 1]}
