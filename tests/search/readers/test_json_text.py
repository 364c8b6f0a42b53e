"""JSON is searched by its names and values, in the lines in which they stand."""

import json
import time

import pytest

from polyvec.search.documents import read_document


def test_names_and_values_are_read_with_their_lines():
    source = '{\n  "name": "F\\u00fcchse",\n  "tags": ["a", "b"],\n  "n": 7, "none": null\n}'
    document = read_document(source.encode(), "a.json")
    shown = [line.strip() for line in document.text.splitlines() if line.strip()]
    assert shown == ["name: Füchse", "tags:", "a", "b", "n: 7", "none: null"]
    assert document.locate(document.text.index("tags")) == 3


@pytest.mark.parametrize(
    "source", ["", "{", '{"a": "b', "[1, 2", "// a comment\n{'a': 1,}", '"\\ud800 \\x"', "]]]}}}"]
)
def test_broken_json_is_read_as_far_as_it_goes(source):
    text = read_document(source.encode(), "a.json").text
    assert ("b" in text) == ('"b' in source)


def test_objects_of_a_list_are_rows_with_a_limit():
    rows = json.dumps([{"name": f"fox {n}"} for n in range(100)]).encode()
    document = read_document(rows, "a.json", max_rows=10)
    assert "fox 9" in document.text and "fox 10" not in document.text
    assert document.cut == "only the first 10 rows are read; --max-rows reads more"


@pytest.mark.parametrize("unit", ["[", '{"a":', '"', '"\\', "a ", ",", '"a" ', "\n"])
def test_any_repetition_takes_linear_time(unit):
    started = time.process_time()
    read_document((unit * (1_000_000 // len(unit))).encode(), "a.json", max_rows=10**9)
    assert time.process_time() - started < 10
