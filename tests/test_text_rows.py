"""Rows of text files: delimiters, and rows of other lengths than the header."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from polyvec.records import read_files, text_columns
from polyvec.text_rows import (
    HALF_PAIR,
    NO_DELIMITER,
    NOT_TEXT,
    SAMPLE_LINES,
    find_delimiter,
    json_depth,
    newline_mode,
    parse_text,
    split_rows,
)


def table_rows(content: str, suffix: str = ".csv") -> list[tuple[int, Any, str]]:
    """The number, the record and the flaw of each row of a table."""
    lines = io.StringIO(content, newline=newline_mode(suffix))
    return [(row.number, row.record, row.flaw) for row in parse_text(lines, suffix)]


@pytest.mark.parametrize(
    ("lines", "preferred", "delimiter"),
    [
        (["a;b", "1,5;2,5"], ",", ";"),
        (["a,b", "x;y,z;w"], ",", ","),
        (["a,b\tc", "1,2\t3"], "\t", "\t"),
        (["text", "one, two", "three; four"], ",", NO_DELIMITER),
        (["text"], "\t", NO_DELIMITER),
        (['"text, raw"', "one, two"], ",", NO_DELIMITER),
        (['"Name, first";town;"street, no."', '"Fox, A.";Den;"Hill, 3"'], ",", ";"),
        (["Preis, €;Menge, kg", "1,5;2,5", "2,5;3,5"], ",", ";"),
        (["id\ttext, long", "1\tone, two"], ",", "\t"),
        (["name;text", "a;one, two", "b;one;two", "c;one, two"], ",", ";"),
        (["sep=\t", "a;b", "1;2"], ",", "\t"),
        (['"sep=|"', "a,b", "1,2"], ",", "|"),
        (["a,b", "1, 2", "3, 4"], ",", ","),
        (["a|b|c", "1|2", "1|2|3"], ",", "|"),
        (["sep=;", "a,b", "1,2"], ",", ";"),
        (['"a,b";c', '"d\n', 'e";f'], ",", ";"),
        ([], ",", NO_DELIMITER),
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
    rows = read_files([path], text_columns(), report=flaws.append)
    assert [row.record["text"] for row in rows] == ["good"]
    assert [flaw.reason for flaw in flaws] == [NOT_TEXT]


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
        assert not row.flaw
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


def test_the_columns_that_a_caller_needs_decide_between_delimiters():
    lines = ["id,n;text\n", "1,a;one\n", "2,b;two\n"]
    assert find_delimiter(lines) == ","
    assert find_delimiter(lines, needed=["text"]) == ";"


def test_a_table_with_one_column_keeps_all_signs_of_its_texts():
    assert table_rows('text\none, two; three\tfour | five\n"six, seven"\n\n""\n  \n') == [
        (2, {"text": "one, two; three\tfour | five"}, ""),
        (3, {"text": "six, seven"}, ""),
        (5, {"text": ""}, ""),
    ]


@pytest.mark.parametrize("end", ["", '\n4,"a ""quoted"" text\nof two lines"\n5,e'])
def test_a_quotation_mark_that_is_not_closed_costs_only_its_row(end):
    rows = table_rows('id,text\n1,a\n2,"b, and\n3,c' + end)
    assert [row[0] for row in rows if row[2]] == [3]
    assert rows[1] == (3, None, "has a quotation mark that is not closed")
    good = {record["id"]: record["text"] for _, record, flaw in rows if not flaw}
    expected = {"1": "a", "3": "c"} | (
        {"4": 'a "quoted" text\nof two lines', "5": "e"} if end else {}
    )
    assert good == expected


def test_quotation_marks_within_a_cell_are_text():
    content = 'id,text\n1,"So" it began\n2,5" disk\n3,"So, it" began\n4,"fine, ""too"""\n'
    rows = table_rows(content)
    assert [flaw for _, _, flaw in rows] == [""] * 4
    texts = [record["text"] for _, record, _ in rows]
    assert texts == ['"So" it began', '5" disk', "So, it began", 'fine, "too"']


def test_a_table_with_tabs_need_not_close_its_quotation_marks():
    assert table_rows('id\ttext\n1\t"He said\n2\tb\n', ".tsv") == [
        (2, {"id": "1", "text": '"He said'}, ""),
        (3, {"id": "2", "text": "b"}, ""),
    ]


def test_empty_cells_beyond_the_header_are_no_cells():
    assert table_rows("a,b\n1,2,,\n3,4\n") == [
        (2, {"a": "1", "b": "2"}, ""),
        (3, {"a": "3", "b": "4"}, ""),
    ]


@pytest.mark.parametrize("line", ['a",b"x,"c\n', '"a\n', '"""\n', '"\n'])
def test_wrong_quotation_marks_take_linear_time(line):
    def seconds(count):
        started = time.process_time()
        assert sum(1 for _ in split_rows([line] * count, ",")) > 0
        return time.process_time() - started

    seconds(1_000)
    assert seconds(200_000) < 10


def test_a_lone_half_of_a_surrogate_pair_is_a_flaw_and_a_whole_pair_none():
    lines = [
        '{"text": "\\ud83e\\udd8a", "\\u00fc": 1}',
        '{"text": "a\\uD83E"}',
        '{"id": "\\udd8a"}',
        r'"\\ud83e"',
    ]
    rows = list(parse_text(io.StringIO("\n".join(lines)), ".jsonl"))
    assert rows[0] == (1, {"text": "🦊", "ü": 1}, "")
    assert [row.flaw for row in rows[1:]] == [HALF_PAIR, HALF_PAIR, ""]
    array = list(parse_text(io.StringIO(f"[{', '.join(lines)}]"), ".json"))
    assert [row.flaw for row in array] == [row.flaw for row in rows]


@pytest.mark.parametrize("end", ["", ", ", ', {"text": "c', ', "c", nonsense]'])
def test_a_broken_array_keeps_the_rows_before_the_break(end):
    rows = list(parse_text(io.StringIO('[{"text": "a"},\n"b"' + end), ".json"))
    assert [row.record and row.record["text"] for row in rows if not row.flaw][:2] == ["a", "b"]
    assert "is not JSON" in rows[-1].flaw
    assert [row.number for row in rows] == [*range(1, len(rows) + 1)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8"])
def test_bytes_that_are_not_text_cost_only_their_row(encoding, tmp_path):
    path = tmp_path / "a.txt"
    good, wrong = "fox\n".encode(encoding), {"utf-8": b"\xff\n"}.get(encoding, b"\x00\xdc\n\x00")
    path.write_bytes(
        good + wrong + "owl\n".encode(encoding.replace("16", "16-le").replace("le-le", "le"))
    )
    flaws = []
    rows = read_files([path], text_columns(), report=flaws.append)
    assert [row.record["text"] for row in rows] == ["fox", "owl"]
    assert [(flaw.number, flaw.reason) for flaw in flaws] == [(2, NOT_TEXT)]


def test_a_quotation_mark_after_a_space_begins_a_quoted_cell():
    assert table_rows('id, text\n1, "Hello, fox"\n2, "a" den\n3, plain\n') == [
        (2, {"id": "1", "text": "Hello, fox"}, ""),
        (3, {"id": "2", "text": ' "a" den'}, ""),
        (4, {"id": "3", "text": "plain"}, ""),
    ]
