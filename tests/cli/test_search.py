import json
import os
import signal
import subprocess
import sys
from inspect import signature
from typing import get_args, get_type_hints

import filelock
import pytest

from polyvec.cli.search import search
from polyvec.search import commits, updating
from polyvec.search.fusion import FusionMethod
from polyvec.search.readers.rows import MAX_ROWS
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
    (tmp_path / "bad.md").write_bytes(b"caf\0")
    code, out, err = polyvec("search", tmp_path, "fox", "--model", tiny_model)
    assert code == ExitStatus.DONE
    assert "fox.md:1" in out
    assert "skipped" in err and "bad.md" in err


def test_the_choices_are_those_of_the_index():
    hints = get_type_hints(search)
    assert set(get_args(Quantise)) <= set(get_args(get_args(hints["quantise"])[0]))
    assert get_args(hints["by"]) == get_args(FusionMethod)


@pytest.fixture
def mounted(tiny_model, tmp_path, polyvec):
    """A folder whose index lies elsewhere, and a search of it for an option."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"A fox sleeps {number}.\n")
    words = ["search", folder, "fox", "--index", tmp_path / "index", "--model", tiny_model]
    assert polyvec(*words)[0] == ExitStatus.DONE
    return folder, lambda *options: polyvec(*words, *options)


def test_files_that_seem_to_be_gone_are_found_until_they_are_forgotten(mounted):
    folder, search_again = mounted
    for path in folder.iterdir():
        path.unlink()
    for _ in range(2):
        code, out, err = search_again()
        assert code == ExitStatus.INCOMPLETE
        assert out.count(".txt:1") > 0
        assert "4 of the 4 passages" in err and "--forget" in err and "0 removed" in err
    code, out, err = search_again("--forget")
    assert (code, out) == (ExitStatus.INCOMPLETE, "")
    assert "4 removed" in err


@pytest.mark.parametrize(("answer", "removed", "status"), [(True, 4, 1), (False, 0, 0)])
def test_a_person_decides_about_files_that_seem_to_be_gone(
    mounted, monkeypatch, answer, removed, status
):
    folder, search_again = mounted
    folder.rename(folder.with_name("away"))
    folder.mkdir()
    questions = []
    monkeypatch.setattr("polyvec.cli.search.ask", lambda text: questions.append(text) or answer)
    code, _, err = search_again()
    assert code == status
    assert f"{removed} removed" in err
    assert [question.endswith("from the index?") for question in questions] == [True]
    folder.rmdir()
    folder.with_name("away").rename(folder)
    assert f"{removed} new or changed" in search_again()[2]


def test_a_search_beside_one_that_indexes_says_how_much_is_there(mounted, tmp_path):
    folder, search_again = mounted
    (folder / "new.txt").write_text("A fox jumps.\n")
    with filelock.FileLock(tmp_path / "index" / "lock"):
        code, out, err = search_again()
    assert code == ExitStatus.DONE and out
    assert "searching 4 passages of 4 files (the folder has 5)" in err


def test_a_search_beside_the_first_one_says_that_it_must_wait(polyvec, tiny_model, tmp_path):
    (tmp_path / ".polyvec").mkdir()
    with filelock.FileLock(tmp_path / ".polyvec" / "lock"):
        code, _, err = polyvec("search", tmp_path, "fox", "--model", tiny_model)
    assert code == ExitStatus.REFUSED
    assert "no passages yet; try again" in err


def test_an_index_that_cannot_be_written_is_searched_as_it_is(mounted, tmp_path):
    _, search_again = mounted
    (tmp_path / "index" / "lock").unlink(missing_ok=True)
    (tmp_path / "index" / "lock").mkdir()
    code, out, err = search_again()
    assert code == ExitStatus.DONE and out
    assert "cannot write" in err and "searching 4 passages of 4 files" in err


def test_a_first_index_that_cannot_be_written_is_refused(polyvec, tiny_model, tmp_path):
    (tmp_path / "file").write_text("no folder")
    words = ["search", tmp_path, "fox", "--index", tmp_path / "file" / "ix", "--model", tiny_model]
    code, _, err = polyvec(*words)
    assert code == ExitStatus.REFUSED
    assert "choose another directory with --index" in err


def test_ctrl_c_says_what_is_kept_and_so_does_the_next_search(mounted, monkeypatch):
    folder, search_again = mounted
    (folder / "table.jsonl").write_text("".join(f'"row {number}"\n' for number in range(9)))
    monkeypatch.setattr(commits, "BLOCK_PASSAGES", 3)
    monkeypatch.setattr(updating, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(updating, "MAX_COMMIT_SHARE", float("inf"))
    commit, calls = updating.commit, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        commit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(updating, "commit", interrupt)
        code, out, err = search_again()
    assert (code, out) == (ExitStatus.INTERRUPTED, "")
    assert "stopped; 7 passages of 5 files are kept" in err
    code, _, err = search_again()
    assert code == ExitStatus.DONE
    assert "an earlier update was interrupted; the 7 passages it left were kept" in err
    assert "13 passages" in err


def test_a_single_file_is_searched(polyvec, tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    (tmp_path / "dog.md").write_text("The lazy dog.\n")
    code, out, err = polyvec("search", tmp_path / "fox.md", "dog", "--model", tiny_model)
    assert code == ExitStatus.DONE
    assert f"{tmp_path / 'fox.md'}:1" in out and "dog.md" not in out
    assert "indexed 1 files" in err


def test_what_is_left_out_is_said_in_a_line_each(polyvec, tiny_model, tmp_path):
    (tmp_path / "foxes.csv").write_text("name\nred\narctic\nswift\n")
    (tmp_path / "note.txt").write_bytes(
        "Die Füchse schlafen über Tag, schöne Grüße".encode("cp1252")
    )
    for name in ("a.png", "b.png", "skip.md"):
        (tmp_path / name).write_text("a fox")
    words = ["search", tmp_path, "fox", "--model", tiny_model]
    code, _, err = polyvec(*words, "--max-rows", "2", "--exclude", "skip.md", "--exclude", "x/")
    assert code == 0
    # LanceDB's log is silenced only in a process of its own.
    lines = [line[9:] for line in err.splitlines() if line.startswith("polyvec: ")]
    assert [line for line in lines if "the model reads" not in line][:3] == [
        f"skipped {tmp_path / 'foxes.csv'}: only the first 2 rows are read; --max-rows reads more",
        f"{tmp_path / 'note.txt'}: its encoding is not known; it is read as windows-1252, a guess",
        "passed over 2 .png, 1 by --exclude",
    ]
    _, out, _ = polyvec(*words, "--include", "*.md", "--top", "9", "--json")
    assert [json.loads(line)["path"] for line in out.splitlines()] == ["skip.md"]
    assert polyvec(*words, "--max-rows", "0")[0] == ExitStatus.REFUSED


def test_the_limit_of_rows_is_that_of_the_library():
    assert signature(search).parameters["max_rows"].default == MAX_ROWS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fox", "--path", "*.txt"], "no file in {} matches --path *.txt"),
        (["fox", "--since", "2999-01-01"], "no file in {} was modified since 2999-01-01"),
        (['"the dog"'], 'no passage contains the phrase "the dog"'),
        (["fox", "--min-score", "0.99", "--weight.bm25", "0"], "no passage scores as high"),
        (["dog", "--weight.dense", "0"], "no passage contains a word of the question"),
    ],
)
def test_a_search_without_results_says_why(polyvec, tiny_model, tmp_path, words, sentence):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    code, out, err = polyvec("search", tmp_path, *words, "--model", tiny_model)
    assert (code, out) == (ExitStatus.INCOMPLETE, "")
    assert f"polyvec: {sentence.format(tmp_path)}" in err


def test_a_search_of_an_empty_folder_and_without_similar_files_says_so(
    polyvec, tiny_model, tmp_path
):
    _, out, err = polyvec("search", tmp_path, "fox", "--model", tiny_model)
    assert out == ""
    assert f"{tmp_path} has no passages" in err
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    near = ["search", tmp_path, "--near", tmp_path / "fox.md", "--model", tiny_model]
    assert f"there is no other file to compare in {tmp_path}" in polyvec(*near)[2]


def test_a_code_that_stands_nowhere_is_said_and_the_nearest_passages_are_shown(
    polyvec, tiny_model, tmp_path
):
    (tmp_path / "fox.md").write_text("The code of the fox is RX-7731.\n")
    words = ["--model", tiny_model, "--json"]
    _, out, err = polyvec("search", tmp_path, "where is RX-7732?", *words)
    assert "no passage contains rx-7732" in err
    assert json.loads(out)["path"] == "fox.md"
    assert "no passage" not in polyvec("search", tmp_path, "where is RX-7731?", *words)[2]


def test_one_passage_of_a_file_is_shown_unless_more_are_asked_for(polyvec, tiny_model, tmp_path):
    (tmp_path / "foxes.csv").write_text("text\na fox\nthe fox\none fox\n")
    words = ["search", tmp_path, "fox", "--model", tiny_model, "--json"]
    assert len(polyvec(*words)[1].splitlines()) == 1
    assert len(polyvec(*words, "--per-file", 2)[1].splitlines()) == 2
    assert len(polyvec(*words, "--per-file", 0)[1].splitlines()) == 3


def test_colours_and_snippets_are_for_terminals(polyvec, tiny_model, tmp_path, monkeypatch):
    lines = [f"Snow {number}." for number in range(6)]
    (tmp_path / "fox.md").write_text("\n\n".join([*lines, "The fox sleeps."]))
    words = ["search", tmp_path, "fox", "--model", tiny_model, "--weight.dense", "0"]
    whole = polyvec(*words)[1]
    assert "Snow 0" in whole and "\x1b" not in whole
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = polyvec(*words)[1]
    assert "\x1b[1mfox\x1b[0m sleeps." in shown
    assert "Snow 0" not in shown
    assert "\x1b" not in polyvec(*words, "--json")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in polyvec(*words)[1]
    assert "Snow 0" not in polyvec(*words)[1]
