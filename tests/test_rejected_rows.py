"""Rows that are set aside."""

import json
from datetime import date
from pathlib import Path

import pytest

from polyvec.records import BadRow
from polyvec.rejected_rows import MAX_NAMED_ROWS, set_aside


def test_rows_are_named_and_kept_with_what_they_hold(tmp_path: Path, capsys) -> None:
    path = tmp_path / "out.rejected.jsonl"
    with set_aside(path) as report:
        report(BadRow("a.csv", 7, "text is empty", "line", {"text": "", "day": date(2026, 1, 31)}))
        report(BadRow("a.csv", 9, "is not text", "line", {"": "caf\udce9 \ud83d"}))
        assert not path.exists()
    assert report.count == 2
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {
            "file": "a.csv",
            "unit": "line",
            "number": 7,
            "reason": "text is empty",
            "row": {"text": "", "day": "2026-01-31"},
        },
        {
            "file": "a.csv",
            "unit": "line",
            "number": 9,
            "reason": "is not text",
            "row": "caf\udce9 \ud83d",
        },
    ]
    shown = capsys.readouterr().err
    assert "a.csv, line 7: text is empty" in shown and "a.csv, line 9: is not text" in shown
    assert f"2 rows in all: see {path}" in shown


@pytest.mark.parametrize("has_file", [True, False])
def test_the_terminal_names_the_first_rows_and_their_number(
    has_file: bool, tmp_path: Path, capsys
) -> None:
    with set_aside(tmp_path / "out" if has_file else None) as report:
        for number in range(100):
            report(BadRow("a.csv", number, "is bad"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MAX_NAMED_ROWS + 1
    assert "100 rows" in lines[-1]
    assert len(list(tmp_path.iterdir())) == has_file


def test_without_such_rows_an_older_file_is_removed_and_an_error_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("older")
    with pytest.raises(ValueError, match="stop"), set_aside(path) as report:
        report(BadRow("a.csv", 1, "is bad"))
        raise ValueError("stop")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["older"]
    with set_aside(path):
        pass
    assert list(tmp_path.iterdir()) == []
