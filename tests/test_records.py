"""Rows of files: every format, every way in which a row or a file can be bad."""

import csv
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvec.records import (
    BadRow,
    Columns,
    as_label,
    as_number,
    as_text,
    as_texts,
    list_blocks,
    read_rows,
)

COLUMNS = Columns(needed={"text": as_text, "score": as_number}, optional={"tags": as_texts})

GOOD = [
    {"text": "a fox", "score": 1.5, "tags": None},
    {"text": 'eine,\n"Füchsin"', "score": 2.0, "tags": ["x"]},
    {"text": "лиса", "score": -3.0, "tags": None},
]


def write(path: Path, rows: list[dict]) -> Path:
    """The rows as the file's name asks."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(rows[0])
            for row in rows:
                lines.writerow(["".join(v) if isinstance(v, list) else v for v in row.values()])
    return path


def read(path: Path) -> tuple[list[dict], list[BadRow]]:
    bad: list[BadRow] = []
    return list(read_rows(path, COLUMNS, report=bad.append)), bad


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.csv"])
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, GOOD)) == (GOOD, [])


def test_other_columns_are_left_out(tmp_path: Path) -> None:
    rows = [{"id": i, **row} for i, row in enumerate(GOOD)]
    assert read(write(tmp_path / "rows.parquet", rows)) == (GOOD, [])


def test_a_bad_row_of_parquet_is_left_out_and_named(tmp_path: Path) -> None:
    rows = [{"text": text, "score": 1.0} for text in ("a", None, " ", "b")]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    found, bad = read(path)
    assert [row["text"] for row in found] == ["a", "b"]
    assert [str(row) for row in bad] == [
        f"{path}, row 2: text is missing",
        f"{path}, row 3: text is empty",
    ]


def test_a_bad_line_of_json_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD[0]).encode()
    lines = [
        good,
        b'{"text": "cut',
        b"",
        b'["a list"]',
        b'{"text": "x", "score": "many"}',
        b'{"text": "x", "score": NaN}',
        b'{"text": "\xff", "score": 1}',
        b'{"text": "\\ud800", "score": 1}',
        b'{"text": 7, "score": 1}',
        b'{"text": "x", "score": 1, "tags": ["a", null]}',
        b"[" * 100_000,
        good,
    ]
    path.write_bytes(b"\n".join(lines))
    found, bad = read(path)
    assert found == [GOOD[0]] * 2
    assert [row.number for row in bad] == [2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert bad[2].reason == "score is 'many', must be a number"
    assert bad[5].reason == "text is not UTF-8"


def test_a_bad_line_of_csv_is_left_out_and_named(tmp_path: Path) -> None:
    # The number is the line's, although one text holds a line break.
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbftext,score\r\na,1\r\n"b\nb",2\r\n\r\nc\r\nd,x\r\n\xff,3\r\n,4\r\ne,5\r\n'
    )
    found, bad = read(path)
    assert [row["text"] for row in found] == ["a", "b\nb", "e"]
    assert [(row.number, row.reason) for row in bad] == [
        (6, "has 1 cells, the header 2"),
        (7, "score is 'x', must be a number"),
        (8, "is not UTF-8"),
        (9, "text is empty"),
    ]


def test_without_a_report_bad_rows_go_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("nonsense\n")
    with caplog.at_level(logging.WARNING):
        assert list(read_rows(path, COLUMNS)) == []
    assert "rows.jsonl, line 1: is not JSON" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("gone.parquet", None, "there is no file .*gone.parquet"),
        ("rows.txt", b"a", "rows.txt: the name of a table must end in .csv, .tsv, .json, .jsonl"),
        ("rows.xlsx", b"a", "rows.xlsx: the name of a table must end in .csv"),
        ("rows.csv", b"text,stars\na,1\n", "rows.csv lacks the column score; it has text, stars"),
        ("rows.csv", b"", "lacks the columns text, score; it has none"),
        ("rows.parquet", b"PAR1 no more", "rows.parquet is not a whole Parquet file"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_names_it(
    name: str, content: bytes | None, part: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=part):
        list(read_rows(tmp_path / name, COLUMNS))


def test_damage_inside_a_parquet_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"text {i}" for i in range(5_000)], "score": [1.0] * 5_000})
    pq.write_table(table, path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[200:2_000] = b"\x00" * 1_800
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"rows\.parquet is damaged after row"):
        list(read_rows(path, COLUMNS))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_blocks_together_are_the_file(name: str, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "score": float(i)} for i in range(2_500)]
    path = tmp_path / name
    if name.endswith("jsonl"):
        write(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    blocks = list_blocks(path, COLUMNS)
    assert len(blocks) > 2
    found = [row for block in blocks for row in block.read(COLUMNS)]
    assert [row.number for row in found] == list(range(1, 2_501))
    assert [row.record["text"] for row in found if row.record] == [r["text"] for r in rows]
    last = list(blocks[-1].read(COLUMNS))
    assert len(last) == blocks[-1].size
    assert last == found[-len(last) :]


def test_rows_may_come_from_anything_that_gives_mappings() -> None:
    bad: list[BadRow] = []
    rows = [*GOOD, {"text": None, "score": 1.0}]
    assert list(read_rows(iter(rows), COLUMNS, report=bad.append)) == GOOD
    assert str(bad[0]) == "the rows given, row 4: text is missing"


def test_labels_may_be_numbers_and_truth_values() -> None:
    assert [as_label(value) for value in ("spam", 3, True)] == ["spam", "3", "True"]
    with pytest.raises(ValueError, match="must be a text"):
        as_label(0.5)
