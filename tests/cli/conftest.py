"""The command line, run in the process of the tests."""

import sys

import pytest

from polyvec import cli


@pytest.fixture
def polyvec(monkeypatch, capfd):
    """Run a command line in this process. Returns its exit status, output and complaints."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["polyvec", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        return end.value.code, said.out, said.err

    return run
