import io

import pytest

from polyvec.terminal import ask, shorten


def test_a_shortened_text_fits_the_size():
    for size in (5, 9, 20):
        assert len(shorten("one  two\nthree four five", size)) <= size + 1
    assert shorten("温泉" * 9, 5) == "温泉温泉 …"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("y\n", True), ("Yes\n", True), ("\n", False), ("", False), ("no\n", False)],
)
def test_only_a_yes_on_a_terminal_is_a_yes(monkeypatch, typed, answer):
    def stream(text, is_terminal):
        stream = io.StringIO(text)
        monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
        return stream

    shown = stream("", True)
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("sys.stdin", stream(typed, True))
    assert ask("Remove them?") is answer
    assert "Remove them? [y/N]" in shown.getvalue()
    monkeypatch.setattr("sys.stdin", stream(typed, False))
    assert ask("Remove them?") is None
