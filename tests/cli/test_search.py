import json
import os
import signal
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from polyvec.cli.search import search
from polyvec.search.fusion import FusionMethod
from polyvec.search.vectors import Quantise
from polyvec.terminal import ExitStatus

POLYVEC = [sys.executable, "-m", "polyvec"]


def test_search_prints_file_line_passage_and_score(polyvec, tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("\n\nA fox\x1b[2J sleeps.\n")
    words = ["search", tmp_path, "fox", "--model", tiny_model]
    code, out, err = polyvec(*words)
    assert code == 0
    assert out.splitlines()[0].endswith(f"{tmp_path / 'fox.md'}:3")
    assert "    A fox\\x1b[2J sleeps." in out
    assert "indexed 1 files, 1 passages" in err
    code, out, _ = polyvec(*words, "--json")
    assert json.loads(out)["line"] == 3


def test_search_explains_filters_and_compares_files(polyvec, tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    (tmp_path / "copy.txt").write_text("A fox sleeps!\n")
    words = ["search", tmp_path, "fox", "--model", tiny_model, "--path", "*.md"]
    code, out, _ = polyvec(*words, "--explain", "--weight.bm25", "0.5")
    assert code == 0
    assert "dense  no. 1" in out
    assert "adds 0.333" in out
    assert "copy.txt" not in out
    _, out, _ = polyvec(*words, "--json", "--explain")
    assert set(json.loads(out)["parts"]) == {"dense", "bm25"}
    _, out, _ = polyvec(*words, "--since", "2999-01-01")
    assert out == ""
    near = ["search", tmp_path, "--near", tmp_path / "fox.md", "--model", tiny_model, "--json"]
    assert json.loads(polyvec(*near)[1])["path"] == "copy.txt"


def test_the_first_search_of_a_folder_tells_only_what_polyvec_says(tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    words = ["search", str(tmp_path), "fox", "--model", str(tiny_model)]
    run = subprocess.run([*POLYVEC, *words], capture_output=True, text=True)
    assert all(line.startswith("polyvec: ") for line in run.stderr.splitlines())


def read_until(stream, part):
    """Lines up to the one that has the part; all there are, if none has."""
    told = []
    for line in stream:
        told.append(line)
        if part in line:
            break
    return "".join(told)


@pytest.mark.timeout(300)
def test_a_watched_folder_answers_from_files_as_they_are_now(tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    (tmp_path / "old.md").write_text("The lazy dog.\n")
    command = ["search", tmp_path, "--watch", "--weight.dense", "0", "--model", tiny_model]
    run = subprocess.Popen(
        [*POLYVEC, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdin and run.stdout and run.stderr
    assert "2 files" in read_until(run.stderr, "watching")
    run.stdin.write("dog\n")
    run.stdin.flush()
    assert "old.md:1" in run.stdout.readline()
    (tmp_path / "ignored.png").write_text("dog")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "new.md").write_text("\nThe brown snow.\n")
    assert f"changed {tmp_path}/sub/new.md" in read_until(run.stderr, "changed")
    run.stdin.write("snow\n")
    run.stdin.flush()
    assert "sub/new.md:2" in read_until(run.stdout, ".md:")
    (tmp_path / "old.md").unlink()
    assert f"removed {tmp_path}/old.md" in read_until(run.stderr, "removed")
    run.stdin.write("dog\n")
    # At the end of the questions it goes on watching.
    run.stdin.close()
    read_until(run.stderr, "answered")
    (tmp_path / "fox.md").write_text("A fox jumps.\n")
    assert "changed" in read_until(run.stderr, "changed")
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(timeout=300) == 0
    assert run.stderr.read() == "polyvec: stopped watching\n"
    assert ".md:" not in run.stdout.read()
    run.stdout.close()
    run.stderr.close()


@pytest.mark.timeout(300)
def test_a_standing_question_is_answered_again_after_each_change(tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    command = ["search", tmp_path, "dog", "--watch", "--weight.dense", "0", "--json"]
    run = subprocess.Popen(
        [*POLYVEC, *map(str, command), "--model", str(tiny_model)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout and run.stderr
    read_until(run.stderr, "answered")
    (tmp_path / "dog.txt").write_text("The lazy dog.\n")
    assert json.loads(run.stdout.readline())["path"] == "dog.txt"
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=300)
    assert run.returncode == 0


def test_the_help_of_search_shows_examples_and_options(polyvec):
    code, out, _ = polyvec("search", "--help")
    assert code == 0
    assert 'polyvec search notes/ "how do I stop a nosebleed?"' in out
    assert "--rerank" in out


def test_a_search_that_finds_nothing_has_status_1(polyvec, tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    words = ["search", tmp_path, "fox", "--model", tiny_model, "--path", "*.txt"]
    code, out, _ = polyvec(*words)
    assert (code, out) == (ExitStatus.INCOMPLETE, "")


def test_a_search_names_the_files_that_it_cannot_read_and_answers(polyvec, tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    (tmp_path / "bad.md").write_bytes(b"caf\xe9")
    code, out, err = polyvec("search", tmp_path, "fox", "--model", tiny_model)
    assert code == ExitStatus.DONE
    assert "fox.md:1" in out
    assert "skipped" in err and "bad.md" in err


def test_the_choices_are_those_of_the_index():
    hints = get_type_hints(search)
    assert set(get_args(Quantise)) <= set(get_args(get_args(hints["quantise"])[0]))
    assert get_args(hints["by"]) == get_args(FusionMethod)
