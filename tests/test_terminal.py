import io
import json
import sys

import pytest

from polyvec.terminal import (
    json_line,
    note,
    plain,
    plain_line,
    shorten,
    show_every_character,
)


def test_a_shortened_text_fits_the_size():
    for size in (5, 9, 20):
        assert len(shorten("one  two\nthree four five", size)) <= size + 1
    assert shorten("温泉" * 9, 5) == "温泉温泉 …"


STEERING = [0, 7, 8, 13, 27, 127, 0x9B, 0x202E, 0x2066, 0x200F, 0x61C, 0x2028]


@pytest.mark.parametrize("code", STEERING)
def test_characters_that_steer_a_terminal_are_shown_as_escapes(code):
    for show in (plain, plain_line):
        shown = show(f"a{chr(code)}b")
        assert chr(code) not in shown
        assert f"{code:x}" in shown


def test_a_text_keeps_its_lines_and_a_name_has_one():
    assert plain("a\tb\nc") == "a\tb\nc"
    assert plain_line("a\tb\nc") == "a\\x09b\\x0ac"
    assert plain_line("grüße 猫 👍🏽 עברית") == "grüße 猫 👍🏽 עברית"


def test_a_note_is_one_line(capsys):
    note("skipped a\nb\x1b[2J")
    assert capsys.readouterr().err == "polyvec: skipped a\\x0ab\\x1b[2J\n"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "koi8-r"])
def test_every_text_can_be_written_to_every_terminal(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    show_every_character()
    text = "猫 grüßt \ud800 лису"
    sys.stdout.write(plain(text) + "\n")
    sys.stdout.write(json_line({"text": text}))
    sys.stdout.flush()
    shown, line = raw.getvalue().splitlines()
    assert ("猫" if encoding == "utf-8" else "\\u732b") in shown.decode(encoding)
    # JSON is UTF-8, whatever the terminal is.
    assert json.loads(line.decode("utf-8")) == {"text": text}
