import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyvec.encoder import Encoder

POLYVEC = [sys.executable, "-m", "polyvec"]


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


def test_standard_input_is_read_and_a_closed_pipe_is_no_error(tiny_model):
    command = [*POLYVEC, "embed", "--model", str(tiny_model)]
    run = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdout.close()
    _, err = run.communicate(b"fox\n" * 2000)
    assert (run.returncode, err) == (0, b"")


def test_an_interrupt_ends_quietly_with_status_130(tiny_model):
    command = [*POLYVEC, "embed", "--model", str(tiny_model)]
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


def test_a_hyphen_is_standard_input_beside_other_files(polyvec, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "stdin").write_text("fox\n")
    (tmp_path / "in.txt").write_text("dog\n")
    with (tmp_path / "stdin").open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        words = ["embed", "-i", "-", "-i", tmp_path / "in.txt", "--model", tiny_model]
        code, out, _ = polyvec(*words)
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["fox", "dog"]


LONG = " ".join(["fox"] * 200)


@pytest.mark.filterwarnings("default::polyvec.truncation.TruncationWarning")
@pytest.mark.parametrize("rule", ["end", "start"])
def test_a_note_counts_what_long_texts_lost(polyvec, tiny_model, rule):
    words = ["embed", "fox", LONG, LONG, "--model", tiny_model, "--truncate", rule]
    code, out, err = polyvec(*words)
    assert code == 0 and out.count("\n") == 3
    assert err.startswith("polyvec: 2 texts have more than the 64 tokens") and err.count("\n") == 1
    assert f"characters at the {rule} were cut" in err


def test_a_size_that_the_model_lacks_is_refused_in_the_words_of_the_command(polyvec, tiny_model):
    code, _, err = polyvec("embed", "fox", "--dim", 33, "--model", tiny_model)
    assert code == 2
    assert "--dim is 33" in err and "8, 16, 32" in err and "any_dim" not in err
