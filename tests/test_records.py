"""Rows of files: every format and kind of cell, every way in which a row or a file can be bad."""

import csv
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvec.records import (
    SUFFIXES,
    BadRow,
    Columns,
    Report,
    as_label,
    as_number,
    as_text,
    as_texts,
    join_result,
    list_blocks,
    plain_value,
    read_files,
    read_rows,
    refuse,
    text_columns,
)
from polyvec.text_rows import HALF_PAIR, NOT_TEXT

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
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            lines.writerow(rows[0])
            for row in rows:
                lines.writerow(["".join(v) if isinstance(v, list) else v for v in row.values()])
    return path


def read_texts(path: Path, *, report: Report = refuse) -> list[dict]:
    """The rows of a file with texts, and all columns of each."""
    return [row.record for row in read_files([path], text_columns(), report=report)]


def read(path: Path) -> tuple[list[dict], list[BadRow]]:
    bad: list[BadRow] = []
    return list(read_rows(path, COLUMNS, report=bad.append)), bad


@pytest.mark.parametrize(
    "name",
    [
        "rows.parquet",
        "rows.jsonl",
        "rows.NDJSON",
        "rows.json",
        "rows.csv",
        "rows.CSV",
        "rows.tsv",
    ],
)
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
    assert bad[3].reason == "score is missing"
    assert [row.reason for row in bad[4:6]] == [NOT_TEXT, HALF_PAIR]


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
        (8, NOT_TEXT),
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


def records(path: Path, content: bytes) -> list[dict]:
    path.write_bytes(content)
    return read_texts(path)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl", ".json", ".csv", ".tsv"])
def test_every_text_format_may_have_every_encoding_of_unicode(
    suffix: str, encoding: str, tmp_path: Path
) -> None:
    texts = ["red Füchse", "狐狸 🦊"]
    as_json = [json.dumps(text, ensure_ascii=False) for text in texts]
    lines = as_json if suffix == ".jsonl" else texts
    lines = [f"[{', '.join(as_json)}]"] if suffix == ".json" else lines
    lines = ["text", *texts] if suffix in (".csv", ".tsv") else lines
    found = records(tmp_path / f"rows{suffix}", "\r\n".join(lines).encode(encoding))
    assert found == [{"text": text} for text in texts]


def test_a_blank_line_is_an_empty_text_and_no_row_of_a_table(tmp_path: Path) -> None:
    def texts(name: str, content: bytes) -> list[str]:
        return [record["text"] for record in records(tmp_path / name, content)]

    assert texts("a.txt", b"a\n\nb\n") == ["a", "", "b"]
    assert texts("a.jsonl", b'"a"\n\n"b"\n') == ["a", "b"]
    assert texts("a.csv", b"text\na\n\nb\n") == ["a", "b"]


def test_other_columns_stay_with_a_text(tmp_path: Path) -> None:
    assert records(tmp_path / "a.csv", b"id, text\n7,fox\n") == [{"id": "7", "text": "fox"}]
    pq.write_table(pa.table({"id": [7], "text": ["fox"]}), tmp_path / "a.parquet")
    assert read_texts(tmp_path / "a.parquet") == [{"id": 7, "text": "fox"}]


def test_the_first_bad_row_ends_the_reading_unless_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'"a"\n{"no": 1}\n7\n"\xff"\n"b"\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: text is missing"):
        read_texts(path)
    bad: list[BadRow] = []
    assert read_texts(path, report=bad.append) == [{"text": "a"}, {"text": "b"}]
    assert [(row.number, row.reason) for row in bad] == [
        (2, "text is missing"),
        (3, "text is 7, must be a text"),
        (4, NOT_TEXT),
    ]


def test_a_cell_may_be_of_any_length(tmp_path: Path) -> None:
    text = "fox\n" * 100_000
    assert records(tmp_path / "a.csv", f'text,id\n"{text}",7\n'.encode()) == [
        {"text": text, "id": "7"}
    ]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_table_may_have_any_of_four_delimiters(name: str, delimiter: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerows([["text", "score", "note"], ["a, b; c | d\te", "1,5", ""]] * 2)
    assert next(iter(read_texts(tmp_path / name))) == {
        "text": "a, b; c | d\te",
        "score": "1,5",
        "note": "",
    }


def test_the_line_that_names_the_delimiter_is_no_row_but_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert records(path, b"sep=;\r\ntext;id\r\na,b;1\r\n") == [{"text": "a,b", "id": "1"}]
    path.write_text("sep=;\ntext;id\na;1\nb\n")
    with pytest.raises(ValueError, match="line 4: has 1 cells, the header 2"):
        read_texts(path)


def test_lines_of_an_old_mac_table_are_told_apart(tmp_path: Path) -> None:
    found = records(tmp_path / "a.csv", b"text,id\rfox,7\rdog,8\r")
    assert found == [{"text": "fox", "id": "7"}, {"text": "dog", "id": "8"}]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.json", b'["a', "a.json is not JSON"),
        ("a.json", b'["a", ', "a.json, row 2: is not JSON"),
        ("a.txt", b"\xff\xfea\xd8", "a.txt, line 1: holds bytes that are not text"),
        ("a.pdf", b"%PDF-1.7\n", "a.pdf is not a text"),
        ("a.xlsx", b"PK\x03\x04\x00\x00", "a.xlsx is not a text"),
        ("a.csv", b"body\nx\n", "a.csv lacks the column text; it has body"),
        ("a.csv", b"", "a.csv lacks the column text; it has none"),
        ("a.parquet", b"", "a.parquet is not a whole Parquet file"),
    ],
)
def test_a_broken_file_is_named(name: str, content: bytes, part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=part):
        records(tmp_path / name, content)


@pytest.mark.parametrize("name", [f"rows{suffix}" for suffix in SUFFIXES])
def test_every_format_has_blocks_or_says_that_it_has_none(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [{"text": "fox"}])
    columns = Columns(needed={"text": as_text})
    if path.suffix in (".csv", ".tsv", ".json"):
        with pytest.raises(ValueError, match="cannot be read from the middle"):
            list_blocks(path, columns)
    else:
        assert [block.first for block in list_blocks(path, columns)] == [1]


def test_utf_16_has_no_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"a"\n', encoding="utf-16")
    with pytest.raises(ValueError, match="UTF-16 cannot be read from the middle"):
        list_blocks(tmp_path / "a.jsonl", Columns(needed={"text": as_text}))


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("text,id\nfox,7\n",))
    writer.start()
    assert read_texts(path) == [{"text": "fox", "id": "7"}]
    writer.join()


def test_standard_input_has_a_text_on_every_line_and_stays_open() -> None:
    script = (
        "import sys; from pathlib import Path; "
        "from polyvec.records import read_files, text_columns; "
        "rows = read_files([Path('-')], text_columns()); "
        "print([row.record['text'] for row in rows], sys.stdin.closed)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], input="a\n\nfüchse\n".encode(), capture_output=True
    )
    assert run.stdout.decode().strip() == "['a', '', 'füchse'] False"


def test_only_parquet_imports_pyarrow_and_a_missing_one_is_an_import_error(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"text": "fox"}])
    write(tmp_path / "a.parquet", [{"text": "fox"}])
    script = (
        "import sys; sys.modules['pyarrow'] = None; from pathlib import Path; "
        "from polyvec.records import read_files, text_columns; "
        "read = lambda name: list(read_files([Path(name)], text_columns())); "
        "print(len(read('a.csv'))); read('a.parquet')"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout == "1\n"
    assert "ModuleNotFoundError" in run.stderr or "ImportError" in run.stderr


MISSING = [
    None,
    float("nan"),
    np.nan,
    np.float32("nan"),
    pd.NA,
    pd.NaT,
    pa.scalar(None, pa.string()),
]


@pytest.mark.parametrize("value", MISSING)
@pytest.mark.parametrize("convert", [as_text, as_label, as_number])
def test_a_missing_cell_of_any_library_is_missing(convert: Callable, value: Any) -> None:
    with pytest.raises(ValueError, match="text is missing"):
        Columns(needed={"text": convert}).check({"text": value})
    assert Columns(needed={}, optional={"text": convert}).check({"text": value}) == {"text": None}


@pytest.mark.parametrize(
    ("convert", "value", "plain"),
    [
        (as_label, 2.0, "2"),
        (as_label, np.float32(2), "2"),
        (as_label, np.int8(2), "2"),
        (as_label, np.bool_(True), "True"),
        (as_label, np.str_("two"), "two"),
        (as_label, Decimal("2"), "2"),
        (as_label, pa.scalar(2), "2"),
        (as_label, pd.Series([2, None])[0], "2"),
        (as_text, np.array("fox"), "fox"),
        (as_text, pa.scalar("fox"), "fox"),
        (as_number, np.array(2, np.int16), 2.0),
        (as_number, pa.scalar(2.5), 2.5),
        (as_texts, np.array(["fox", "dog"]), ["fox", "dog"]),
        (as_texts, pa.scalar(["fox", "dog"]), ["fox", "dog"]),
        (as_texts, pd.Series(["fox", "dog"]), ["fox", "dog"]),
        (as_texts, (np.str_("fox"),), ["fox"]),
    ],
)
def test_cells_of_numpy_pandas_and_arrow_are_their_values(
    convert: Callable, value: Any, plain: Any
) -> None:
    checked = Columns(needed={"x": convert}).check({"x": value})["x"]
    assert checked == plain
    assert type(checked) in (str, float, list)


def test_a_number_that_is_not_whole_is_no_label() -> None:
    for value in (0.5, np.float32(0.5), float("inf"), Decimal("0.5")):
        with pytest.raises(ValueError, match="must be a text"):
            as_label(plain_value(value))


def test_columns_may_have_other_names_in_the_file(tmp_path: Path) -> None:
    rows = [{"body": "fox", "stars": 2}, {"body": "", "stars": 1}]
    columns = Columns(
        needed={"text": as_text, "score": as_number}, aliases={"text": "body", "score": "stars"}
    )
    for suffix in (".parquet", ".csv", ".jsonl"):
        path, bad = write(tmp_path / f"rows{suffix}", rows), list[BadRow]()
        assert list(read_rows(path, columns, report=bad.append)) == [{"text": "fox", "score": 2.0}]
        assert [row.reason for row in bad] == ["body is empty"]
    (tmp_path / "other.csv").write_text("text,score\na,1\n")
    with pytest.raises(ValueError, match="lacks the columns body, stars; it has text, score"):
        list(read_rows(tmp_path / "other.csv", columns))


def test_a_missing_file_is_told_before_any_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fox\n")
    with pytest.raises(ValueError, match=r"there is no file .*b\.txt"):
        read_files([tmp_path / "a.txt", tmp_path / "b.txt"], text_columns())
    with pytest.raises(ValueError, match="is a folder"):
        read_files([tmp_path], text_columns())
    write(tmp_path / "b.csv", [{"body": "fox"}])
    write(tmp_path / "c.parquet", [{"body": "fox"}])
    for name in ("b.csv", "c.parquet"):
        with pytest.raises(ValueError, match="lacks the column text; it has body"):
            read_files([tmp_path / "a.txt", tmp_path / name], text_columns())


def test_a_row_without_an_id_is_bad_and_a_given_column_may_be_empty(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        [{"text": "fox", "id": 7, "label": ""}, {"text": "dog", "id": "", "label": "x"}],
    )
    bad: list[BadRow] = []
    columns = text_columns("text", "id", given="label")
    [row] = read_files([path], columns, report=bad.append)
    assert row.record == {"text": "fox", "id": "7", "label": ""}
    assert [str(row) for row in bad] == [f"{path}, line 3: id is missing"]
    with pytest.raises(ValueError, match="lacks the column kind"):
        list(read_files([path], text_columns("text", given="kind")))


def test_bad_rows_keep_what_stands_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": 7, "id": 1}\n{"text": "cut\n"\xff"\n')
    bad: list[BadRow] = []
    assert read_texts(path, report=bad.append) == []
    assert [row.row for row in bad] == [
        {"text": 7, "id": 1},
        {"": '{"text": "cut'},
        {"": '"\udcff"'},
    ]


def test_results_hide_no_column_of_a_row() -> None:
    row = {"text": "a", "label": "x", "given_label": "y", "score": 1}
    joined = join_result(row, {"label": "z", "score": 0.5})
    assert joined == {
        "text": "a",
        "given_given_label": "x",
        "given_label": "y",
        "given_score": 1,
        "label": "z",
        "score": 0.5,
    }
