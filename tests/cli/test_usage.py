"""Mistakes in a command line: one helpful line each, and no traceback."""

import os
import subprocess
import sys

import pytest

from polyvec.cli import VERBS, run
from polyvec.terminal import ExitStatus

MISTAKES = [
    (["serch", ".", "fox"], 'did you mean "search"?'),
    (["encode", "a"], 'did you mean "embed"?'),
    (["how do I bake bread?"], 'polyvec search DIR "how do I bake bread?"'),
    (["eval", "rnu"], 'did you mean "run"?'),
    (["train", "adaptr"], 'did you mean "adapter"?'),
    (["search", ".", "fox", "--tpo", "3"], "did you mean --top?"),
    (["search", ".", "fox", "-n", "3"], "did you mean --top?"),
    (["rerank", "fox", "a.txt", "-n", "3"], "did you mean --top?"),
    (["embed", "-n"], "`polyvec embed --help`"),
    (["search", ".", "-what is a fox?"], 'comes after "--"'),
    (["embed", "- a text"], 'comes after "--"'),
    (["search", ".", "how", "do", "I"], 'needs quotes, as in "how do I"'),
    (["search", ".", "how", "--json", "do", "I"], "needs quotes"),
    (["info", "a", "b"], 'does not expect the words "b"'),
    (["search"], "polyvec search needs DIR"),
    (["search", ".", "fox", "--top"], "--top needs a value"),
    (["search", ".", "fox", "--by", "rank"], 'Did you mean "ranks"?'),
    (["embed", "a", "--threads", "0"], '--threads is "0"'),
    (["embed", "a", "--threads"], '--threads is ""'),
    (["serve", "--port", "70000"], "0..65535"),
    (["serve", "--port", "-1"], "0..65535"),
    (["help", "serch"], 'did you mean "search"?'),
]


@pytest.mark.parametrize(("words", "part"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_mistake_is_explained_in_one_line(polyvec, words, part):
    code, out, err = polyvec(*words)
    assert (code, out) == (ExitStatus.REFUSED, "")
    assert err.startswith("polyvec: ") and err.count("\n") == 1
    assert part in err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_an_unknown_option(polyvec, verb):
    code, out, err = polyvec(verb, "--no-such-option-anywhere")
    assert code == ExitStatus.REFUSED and out == ""
    assert err.startswith("polyvec: ") and err.count("\n") == 1
    assert "--no-such-option-anywhere" in err


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_its_help_option(polyvec, verb):
    code, out, _ = polyvec("help", verb)
    assert code == 0 and out == polyvec(verb, "--help")[1]
    assert "--threads N" in out


def test_help_alone_and_the_version(polyvec):
    assert polyvec("help")[1] == polyvec("--help")[1]
    code, out, _ = polyvec("--version")
    assert code == 0 and out.count("\n") == 1


def test_a_word_behind_two_dashes_is_a_text(polyvec, tiny_model):
    code, out, _ = polyvec("embed", "--model", tiny_model, "--", "- a text", "--threads")
    assert code == 0 and out.count("\n") == 2


def test_threads_limit_every_library(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    for words in (["info", "--threads", "3"], ["info", "--threads=3"], ["--threads", "3", "info"]):
        assert run([*words, "--help"]) == ExitStatus.DONE
        assert os.environ["OMP_NUM_THREADS"] == os.environ["RAYON_NUM_THREADS"] == "3"
        monkeypatch.setenv("OMP_NUM_THREADS", "9")
        monkeypatch.setenv("RAYON_NUM_THREADS", "9")


@pytest.mark.parametrize(
    ("verb", "part"),
    [
        ("search", "were indexed are kept"),
        ("embed", "not changed"),
        ("info", "no file was changed"),
    ],
)
def test_an_interrupt_says_what_is_kept(monkeypatch, capsys, verb, part):
    def interrupt(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("polyvec.cli.app", interrupt)
    assert run([verb]) == ExitStatus.INTERRUPTED
    err = capsys.readouterr().err
    assert err.startswith("polyvec: interrupted; ") and part in err and err.count("\n") == 1


def test_a_broken_installation_is_one_line(monkeypatch, capsys):
    def fail(*words, **options):
        raise ImportError("libfoo.so: cannot open shared object file")

    monkeypatch.setattr("polyvec.cli.app", fail)
    assert run(["info"]) == ExitStatus.REFUSED
    assert "libfoo.so" in capsys.readouterr().err


def test_a_full_standard_output_is_named(monkeypatch, capsys):
    def fail():
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(sys.stdout, "flush", fail)
        assert run(["info", "mini"]) == ExitStatus.REFUSED
    assert capsys.readouterr().err == "polyvec: standard output: No space left on device\n"


SHELL = {
    "a closed output is named": ("info mini >&-", 2, "standard output"),
    "a full output is named": ("info mini > /dev/full", 2, "standard output: No space"),
    "a closed input is empty": ("rerank fox - <&-", 1, ""),
    "closed errors cost nothing": ("info mini 2>&-", 0, ""),
    "a closed output that is not used costs nothing": ("embed fox -o $OUT >&-", 0, ""),
}


@pytest.mark.skipif(sys.platform != "linux", reason="a shell of Linux")
def test_streams_that_are_closed_or_full(tmp_path, tiny_model):
    commands = [
        (f"{command.replace('mini', str(tiny_model))} --model X", code, part)
        if "info" not in command
        else (command.replace("mini", str(tiny_model)), code, part)
        for command, code, part in SHELL.values()
    ]
    running = []
    for number, (command, code, part) in enumerate(commands):
        line = f"{sys.executable} -m polyvec {command.replace('X', str(tiny_model))}"
        environment = os.environ | {"OUT": str(tmp_path / f"{number}.jsonl")}
        started = subprocess.Popen(
            ["sh", "-c", line], stderr=subprocess.PIPE, text=True, env=environment
        )
        running.append((line, started, code, part))
    for line, started, code, part in running:
        _, err = started.communicate(timeout=300)
        assert (started.returncode, part in err, "Traceback" in err) == (code, True, False), line


def test_a_component_that_does_not_exist_is_refused_before_a_folder_is_indexed(run_verb, tmp_path):
    (tmp_path / "a.txt").write_text("A fox sleeps.\n")
    code, _, err = run_verb("search", tmp_path, "fox", "--weight.foo", 1)
    assert (code, "foo" in err, err.count("\n")) == (ExitStatus.REFUSED, True, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
