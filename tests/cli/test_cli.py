import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyvec import cli
from polyvec.checkpoint import load_checkpoint
from polyvec.encoder import Encoder

MAIN = [sys.executable, "-c", "from polyvec.cli import main; main()"]


@pytest.fixture
def polyvec(tiny_model, monkeypatch, capfd):
    """Run a command line in this process: exit status, what it printed, what it complained of."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["polyvec", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        return end.value.code, said.out, said.err

    return run


def test_arguments_become_json_lines_of_the_encoders_vectors(polyvec, tiny_model):
    task = "retrieval.query"
    code, out, _ = polyvec(
        "embed", "fox", "grüß", "--model", tiny_model, "--dim", 8, "--task", task
    )
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [record["text"] for record in records] == ["fox", "grüß"]
    got = np.array([record["embedding"] for record in records], np.float32)
    for prepack, tolerance in ((False, 1e-6), (None, 3e-3)):
        encoder = Encoder.load(tiny_model, prepack=prepack)
        expected = encoder.encode(["fox", "grüß"], task=task, dim=8)
        np.testing.assert_allclose(got, expected, atol=tolerance)


@pytest.mark.parametrize("kind", ["npy", "parquet", "jsonl"])
def test_every_format_holds_the_same_rows(polyvec, tiny_model, tmp_path, kind):
    texts = ["fox", "", "лиса", "a  b"] * 3
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    out = tmp_path / f"out.{kind}"
    assert polyvec("embed", "-i", tmp_path / "in.txt", "-o", out, "--model", tiny_model)[0] == 0
    if kind == "npy":
        got, read = np.load(out), texts
    elif kind == "parquet":
        table = pq.read_table(out)
        got, read = np.array(table["embedding"].to_pylist()), table["text"].to_pylist()
    else:
        records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        got = np.array([record["embedding"] for record in records])
        read = [record["text"] for record in records]
    assert read == texts
    np.testing.assert_allclose(got, Encoder.load(tiny_model).encode(texts), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.txt", out.name])


def test_fields_of_json_lines_are_kept(polyvec, tiny_model, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": 7, "text": "fox"}\n"plain"\n')
    _, out, _ = polyvec("embed", "-i", tmp_path / "in.jsonl", "--model", tiny_model)
    first, second = map(json.loads, out.splitlines())
    assert first["id"] == 7
    assert second["text"] == "plain"


def test_a_table_is_read_by_its_column_text(polyvec, tiny_model, tmp_path):
    (tmp_path / "in.csv").write_text('id,text\n7,"fox, dog"\n\n8,"two\nlines"\n', "utf-8-sig")
    (tmp_path / "in.tsv").write_text("text\tid\nfox, dog\t7\n")
    _, out, _ = polyvec(
        "embed", "-i", tmp_path / "in.csv", "-i", tmp_path / "in.tsv", "--model", tiny_model
    )
    found = [(record["id"], record["text"]) for record in map(json.loads, out.splitlines())]
    assert found == [("7", "fox, dog"), ("8", "two\nlines"), ("7", "fox, dog")]


def test_a_failed_run_leaves_an_older_output_as_it_was(polyvec, tiny_model, tmp_path):
    (tmp_path / "in.jsonl").write_text('"good"\n{"no": "text"}\n')
    out = tmp_path / "out.npy"
    out.write_bytes(b"older")
    code, _, err = polyvec("embed", "-i", tmp_path / "in.jsonl", "-o", out, "--model", tiny_model)
    assert code == 2
    assert "line 2" in err
    assert out.read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["embed", "a", "--dim", "x"], "--dim"),
        (["embed", "a", "--dim", "7"], "8, 16, 32"),
        (["embed", "a", "--task", "cooking"], "retrieval.query"),
        (["embed", "a", "--model", "/no/where"], "/no/where"),
        (["embed", "a", "-i", "b"], "not both"),
        (["embed", "a", "--format", "npy"], "--output"),
        (["embed", "a", "-o", "vectors.csv"], "--format"),
        (["embed", "-i", "/no/where.txt"], "/no/where.txt"),
        (["search", "/no/where", "question"], "/no/where"),
        (["search", "."], "QUESTION"),
        (["search", ".", " "], "empty"),
        (["search", ".", "a", "--top", "0"], "--top"),
        (["search", ".", "a", "--near", "b"], "not both"),
        (["dedupe", "/no/where"], "/no/where"),
        (["info", "/no/where"], "/no/where"),
        (["export", "/no/where", "here"], "/no/where"),
        (["sing"], "embed"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(polyvec, tiny_model, words, part):
    if words[0] == "embed" and "--model" not in words:
        words = [*words, "--model", tiny_model]
    code, out, err = polyvec(*words)
    assert (code, out) == (2, "")
    assert err.startswith("polyvec: ")
    assert err.count("\n") == 1
    assert part in err


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [("search . fox", "lancedb", "search"), ("serve", "uvicorn", "server")],
)
def test_a_missing_extra_is_named(words, module, extra):
    # A process of its own, in which no verb has been imported yet.
    script = (
        f"import sys; sys.modules[{module!r}] = None; from polyvec.cli import main; "
        f"sys.argv[1:] = {words.split()}; main()"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == f"polyvec: this needs {module}: pip install 'polyvec[{extra}]'\n"


def test_search_prints_file_line_passage_and_score(polyvec, tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("\n\nA fox\x1b[2J sleeps.\n")
    words = ["search", tmp_path, "fox", "--model", tiny_model]
    code, out, err = polyvec(*words)
    assert code == 0
    assert out.splitlines()[0].endswith(f"{tmp_path / 'fox.md'}:3")
    assert "    A fox\ufffd[2J sleeps." in out
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
    run = subprocess.run([*MAIN, *words], capture_output=True, text=True)
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
        [*MAIN, *map(str, command)],
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
        [*MAIN, *map(str, command), "--model", str(tiny_model)],
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


def test_dedupe_lists_copies_below_the_file_they_copy(polyvec, tiny_model, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A fox sleeps.\n")
    code, out, err = polyvec("dedupe", tmp_path, "--model", tiny_model)
    assert code == 0
    assert [line.split() for line in out.splitlines()[:2]] == [
        [str(tmp_path / "a.txt")],
        ["1.00", str(tmp_path / "b.txt")],
    ]
    assert "1 copies of 1 files" in err


def test_info_tells_the_shape(polyvec, tiny_model):
    code, out, _ = polyvec("info", tiny_model)
    _, weights = load_checkpoint(tiny_model)
    assert code == 0
    assert f"{sum(int(np.prod(weight.shape)) for weight in weights.values()):,}" in out
    assert "native" in out
    assert "retrieval.query" in out


def test_an_exported_model_encodes_as_its_source(polyvec, tiny_model, tmp_path):
    assert polyvec("export", tiny_model, tmp_path / "out")[0] == 0
    source, exported = (
        Encoder.load(folder).encode("fox", task="separation")
        for folder in (tiny_model, tmp_path / "out")
    )
    np.testing.assert_array_equal(source, exported)


def test_an_int8_export_is_smaller_and_encodes_nearly_as_its_source(polyvec, tiny_model, tmp_path):
    assert polyvec("export", tiny_model, tmp_path / "out", "--int8")[0] == 0
    source, exported = (
        Encoder.load(folder).encode("fox", task="separation")[0]
        for folder in (tiny_model, tmp_path / "out")
    )
    assert source @ exported > 0.999
    whole, small = (
        sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        for folder in (tiny_model, tmp_path / "out")
    )
    assert small < whole / 2


def test_help_shows_examples_and_imports_no_engine():
    script = (
        "import sys; from polyvec.cli import _run, app; "
        "_run(lambda: app(['embed', '--help'])); "
        "sys.exit(any(name in sys.modules for name in ('openvino', 'torch', 'lancedb', 'pyarrow')))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'polyvec embed "Hello"' in run.stdout


def test_every_verb_is_described_without_importing_its_room():
    script = (
        "import sys; from polyvec.cli import _run, app; _run(lambda: app(['--help'])); "
        "sys.exit(any(name in sys.modules for name in ('lancedb', 'uvicorn', 'mteb')))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for verb, words in [("search", "Find the passages"), ("dedupe", "Find files"), ("serve", "Se")]:
        assert re.search(rf"{verb} +{words}", run.stdout)


def test_the_help_of_search_shows_examples_and_options(polyvec):
    code, out, _ = polyvec("search", "--help")
    assert code == 0
    assert 'polyvec search notes/ "how do I stop a nosebleed?"' in out
    assert "--rerank" in out


def test_standard_input_is_read_and_a_closed_pipe_is_no_error(tiny_model):
    command = [*MAIN, "embed", "--model", str(tiny_model)]
    run = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdout.close()
    _, err = run.communicate(b"fox\n" * 2000)
    assert (run.returncode, err) == (0, b"")


def test_an_interrupt_ends_quietly_with_status_130(tiny_model):
    command = [*MAIN, "embed", "--model", str(tiny_model)]
    run = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts what it puts in the background deaf to interrupts, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdin is not None
    # More than one window, so that the first vectors show that it is at work.
    run.stdin.write(b"fox\n" * 5000)
    run.stdin.flush()
    assert run.stdout is not None
    run.stdout.readline()
    os.kill(run.pid, signal.SIGINT)
    _, err = run.communicate()
    assert (run.returncode, err) == (130, b"")


def test_a_recipe_runs_as_a_program_with_its_own_options(polyvec, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import sys, pathlib\n"
        "if __name__ == '__main__':\n"
        "    pathlib.Path(sys.argv[2]).write_text(' '.join(sys.argv))\n"
    )
    out = tmp_path / "out"
    assert polyvec("train", "recipe", str(recipe), "--out", str(out), "-x")[0] == 0
    assert out.read_text() == f"{recipe} --out {out} -x"


def test_what_is_no_recipe_is_refused(polyvec, tmp_path):
    status, _, complaint = polyvec("train", "recipe", str(tmp_path / "none.py"))
    assert status == 2
    assert "there is no recipe" in complaint
