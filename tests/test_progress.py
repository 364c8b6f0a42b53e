"""Progress bars."""

import sys
import threading

from polyvec import progress
from polyvec.progress import HiddenBar, make_bar
from tests.processes import wait_for


def test_a_bar_that_nobody_sees_starts_no_thread(capsys):
    before = threading.active_count()
    for shown in (None, False):
        with make_bar("text", 3, shown) as bar:
            assert isinstance(bar, HiddenBar)
            bar.update()
            assert threading.active_count() == before
    assert capsys.readouterr().err == ""


def test_a_bar_appears_on_a_terminal_and_ticks_while_nothing_is_done(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.01)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = ""

    def ticks() -> bool:
        nonlocal shown
        shown += capsys.readouterr().err
        return shown.count("1/4") > 3

    with make_bar("text", 4) as bar:
        bar.update()
        wait_for(ticks)
    # A total, a rate and the time that is left.
    assert "25%" in shown and "text/s" in shown and "<" in shown


def test_a_short_piece_of_work_shows_no_bar(capsys):
    with make_bar("text", 4, progress=True) as bar:
        bar.update()
    assert capsys.readouterr().err == ""
