"""Files of vectors; tests/cli has the same of `polyvec embed`."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyvec.terminal import json_line
from polyvec.vector_files import WRITERS, write_vectors


@pytest.mark.parametrize("kind", WRITERS)
def test_windows_of_vectors_become_one_file(kind: str, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    records = [{"text": f"text {i}"} for i in range(5)]
    path = tmp_path / "out"
    write_vectors(((records[i : i + 2], vectors[i : i + 2]) for i in (0, 2, 4)), path, kind, 3)
    if kind == "npy":
        got = np.load(path)
    elif kind == "parquet":
        table = pq.read_table(path)
        assert table["text"].to_pylist() == [record["text"] for record in records]
        got = np.array(table["embedding"].to_pylist(), np.float32)
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["text"] for line in lines] == [record["text"] for record in records]
        got = np.array([line["embedding"] for line in lines], np.float32)
    np.testing.assert_array_equal(got, vectors)


def test_values_that_json_lacks_are_written_as_texts(tmp_path: Path) -> None:
    record = {"text": "fox", "day": date(2026, 1, 31)}
    write_vectors([([record], np.ones((1, 2), np.float32))], tmp_path / "out", "jsonl", 2)
    assert json.loads((tmp_path / "out").read_text())["day"] == "2026-01-31"
    assert json.loads(json_line(record))["day"] == "2026-01-31"
