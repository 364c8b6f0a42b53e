"""Rows of text files: delimiters, and rows of other lengths than the header."""

import io
import json
import time
from pathlib import Path

import pytest

from polyvec.records import read_records
from polyvec.text_rows import SAMPLE_LINES, find_delimiter, json_depth, newline_mode, parse_text


@pytest.mark.parametrize(
    ("lines", "preferred", "delimiter"),
    [
        (["a;b", "1,5;2,5"], ",", ";"),
        (["a,b", "x;y,z;w"], ",", ","),
        (["a,b\tc", "1,2\t3"], "\t", "\t"),
        (["text", "one, two", "three; four"], ",", ","),
        (["text"], "\t", "\t"),
        (["a|b|c", "1|2", "1|2|3"], ",", "|"),
        (["sep=;", "a,b", "1,2"], ",", ";"),
        (['"a,b";c', '"d\n', 'e";f'], ",", ";"),
        ([], ",", ","),
    ],
)
def test_the_delimiter_is_the_one_with_which_all_rows_are_alike(
    lines: list[str], preferred: str, delimiter: str
) -> None:
    assert find_delimiter([line + "\n" for line in lines], preferred) == delimiter


def test_a_row_that_goes_on_below_the_sample_does_not_hide_the_delimiter() -> None:
    rows = ["a;b\n"] * (SAMPLE_LINES - 1) + ['"c\n']
    assert find_delimiter(rows) == ";"


def test_no_cell_of_a_table_is_lost() -> None:
    lines = io.StringIO("a,a,,\n1,2,3,4,5\n6\n", newline=newline_mode(".csv"))
    rows = list(parse_text(lines, ".csv"))
    assert [(row.number, row.record) for row in rows] == [
        (2, {"a": "1\n2", "": "3\n4\n5"}),
        (3, {"a": "6"}),
    ]
    assert all("cells, the header 4" in row.flaw for row in rows)


@pytest.mark.parametrize("name", ["array.json", "lines.jsonl", "table.csv", "texts.txt"])
def test_an_undecodable_byte_is_refused_in_every_format(tmp_path: Path, name: str) -> None:
    """The good row before it is read, and the byte never becomes another character."""
    contents = {
        "array.json": b'[{"text": "good"}, {"text": "caf\xe9"}]',
        "lines.jsonl": b'{"text": "good"}\n{"text": "caf\xe9"}\n',
        "table.csv": b"text\ngood\ncaf\xe9\n",
        "texts.txt": b"good\ncaf\xe9\n",
    }
    path = tmp_path / name
    path.write_bytes(contents[name])
    flaws = []
    assert [row["text"] for row in read_records([path], report=flaws.append)] == ["good"]
    assert [flaw.reason for flaw in flaws] == ["is not UTF-8"]


def test_the_header_of_a_table_is_its_first_line_that_is_not_blank() -> None:
    lines = io.StringIO("\n\ntext,label\na,b\n", newline=newline_mode(".csv"))
    assert [(row.number, row.record) for row in parse_text(lines, ".csv")] == [
        (4, {"text": "a", "label": "b"})
    ]


@pytest.mark.parametrize("form", ['[{{"a": {}1{}}}]', '{{"text": "x", "a": {}1{}}}'])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
@pytest.mark.parametrize("depth", [150, 250, 600, 985, 990, 995, 1_000, 100_000])
def test_json_is_written_again_or_named_at_any_depth(form, opening, closing, depth):
    text = form.format(opening * depth, closing * depth)
    [row] = parse_text(io.StringIO(text), ".jsonl")
    if depth < 200:
        assert row.record is not None
        json.dumps(row.record)
    else:
        assert row.record is None and "nested more than 200 levels deep" in row.flaw


def test_brackets_in_strings_are_not_nested():
    assert json_depth('["[[[\\"[[", {"[": []}]') == 3
    [row] = parse_text(io.StringIO(json.dumps({"text": "[{" * 1_000})), ".jsonl")
    assert row.record == {"text": "[{" * 1_000}


def test_many_columns_of_one_name_take_linear_time():
    table = ",".join(["name"] * 50_000) + "\n" + ",".join(["cell"] * 50_000)
    started = time.process_time()
    [row] = parse_text(io.StringIO(table), ".csv")
    assert row.record == {"name": "\n".join(["cell"] * 50_000)}
    assert time.process_time() - started < 10
