import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyvec.checkpoint import save_checkpoint
from polyvec.encoder import Encoder
from polyvec.terminal import ExitStatus
from polyvec.tokenizer import Tokenizer

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
    (tmp_path / "in.csv").write_text("body\nfox\n")
    (tmp_path / "bad.jsonl").write_text('{"no": "text"}\n')
    (tmp_path / "empty.txt").write_text("")
    out = tmp_path / "out.npy"
    out.write_bytes(b"older")
    for name, status, part in (
        ("in.csv", ExitStatus.REFUSED, "lacks the column text; it has body"),
        ("empty.txt", ExitStatus.INCOMPLETE, "no text that can be embedded in"),
        ("bad.jsonl", ExitStatus.INCOMPLETE, "bad.jsonl, line 1: text is missing"),
    ):
        code, _, err = polyvec("embed", "-i", tmp_path / name, "-o", out, "--model", tiny_model)
        assert (code, out.read_bytes()) == (status, b"older")
        assert part in err
    names = {"in.csv", "bad.jsonl", "empty.txt", "out.npy", "out.npy.rejected.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("kind", ["npy", "PARQUET", "ndjson"])
def test_bad_rows_are_set_aside_and_cost_no_other(polyvec, tiny_model, tmp_path, kind):
    (tmp_path / "in.CSV").write_text('id;text\n1;fox\n2\n3;"1,5"\n4;"open\n5;owl\n')
    out = tmp_path / f"out.{kind}"
    words = ["embed", "-i", tmp_path / "in.CSV", "-o", out, "--model", tiny_model]
    code, _, err = polyvec(*words)
    assert code == ExitStatus.INCOMPLETE
    assert "in.CSV, line 3: has 1 cells, the header 2" in err
    rejected = tmp_path / f"out.{kind}.rejected.jsonl"
    bad = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [(row["number"], row["row"]) for row in bad] == [(3, {"id": "2"}), (5, '4;"open')]
    texts = ["fox", "1,5", "owl"]
    if kind == "PARQUET":
        records = pq.read_table(out).to_pylist()
    else:
        rows = out if kind == "ndjson" else tmp_path / "out.npy.rows.jsonl"
        records = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in records] == list(zip("135", texts, strict=True))
    if kind == "npy":
        expected = Encoder.load(tiny_model).encode(texts)
        np.testing.assert_allclose(np.load(out), expected, atol=1e-6)
    (tmp_path / "in.CSV").write_text("id;text\n1;fox\n")
    assert polyvec(*words)[0] == ExitStatus.DONE
    assert not rejected.exists()


def test_columns_of_any_name_are_used_and_kept(polyvec, tiny_model, tmp_path):
    rows = [{"key": "a", "body": "fox", "text": 1}, {"key": None, "body": "dog", "text": 2}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rejected = tmp_path / "rejected.jsonl"
    words = ["--text-column", "body", "--id-column", "key", "--rejected", rejected]
    code, out, err = polyvec("embed", "-i", tmp_path / "in.jsonl", *words, "--model", tiny_model)
    record = json.loads(out)
    assert record.pop("embedding") == pytest.approx(
        Encoder.load(tiny_model).encode("fox")[0].tolist(), abs=1e-5
    )
    assert (code, record) == (ExitStatus.INCOMPLETE, rows[0])
    assert "in.jsonl, line 2: key is missing" in err
    assert json.loads(rejected.read_text())["row"] == rows[1]


def test_an_argument_that_is_a_path_is_refused(polyvec, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("fox")
    (tmp_path / "notes").mkdir()
    for verb in (["embed"], ["classify", "-l", "a", "-l", "b"]):
        for path in ("notes.txt", "notes", str(tmp_path / "notes.txt")):
            code, out, err = polyvec(*verb, "fox", path, "--model", tiny_model)
            assert (code, out) == (ExitStatus.REFUSED, "")
            assert f"-i {path}" in err
    code, out, _ = polyvec("embed", "a text" * 1_000, " ", "--model", tiny_model)
    assert (code, len(out.splitlines())) == (ExitStatus.DONE, 2)


def test_passages_of_files_have_their_places(polyvec, tiny_model, tmp_path):
    notes = tmp_path / "notes"
    (notes / "sub").mkdir(parents=True)
    (notes / "a.md").write_text("# Foxes\n\nA fox sleeps.\n\n## Dens\n\nIt has a den.\n")
    (notes / "sub/b.txt").write_text("The lazy dog.\n")
    (notes / "bad.csv").write_bytes(b"a\0b")
    out = tmp_path / "notes.parquet"
    words = ["embed", "--each", "passage", "-i", notes, "-o", out, "--model", tiny_model]
    code, _, err = polyvec(*words)
    assert code == ExitStatus.INCOMPLETE
    assert "skipped" in err and "bad.csv" in err
    table = pq.read_table(out)
    for row in table.to_pylist():
        content = Path(row["path"]).read_text()
        assert content[row["start"] : row["end"]] == row["text"]
        assert content[: row["start"]].count("\n") + 1 == row["line"]
    found = {(Path(row["path"]).name, row["heading"]) for row in table.to_pylist()}
    assert found == {("a.md", "Foxes"), ("a.md", "Foxes > Dens"), ("b.txt", "")}
    [dog] = [row for row in table.to_pylist() if row["path"].endswith("b.txt")]
    expected = Encoder.load(tiny_model).encode("The lazy dog.", task="retrieval.passage")[0]
    np.testing.assert_allclose(dog["embedding"], expected, atol=1e-6)
    code, out, _ = polyvec(*words[:3], "-i", notes / "sub/b.txt", "--model", tiny_model)
    assert json.loads(out)["text"] == "The lazy dog."


def test_a_text_without_a_finite_vector_is_set_aside(polyvec, spoilt_model, tmp_path):
    texts = ["fox", "敏捷的", "lazy dog"]
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    words = ["-i", tmp_path / "in.txt", "--model", spoilt_model]
    code, out, err = polyvec("embed", *words)
    assert code == ExitStatus.INCOMPLETE
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["fox", "lazy dog"]
    assert "in.txt, line 2: the model has no finite embedding" in err
    code, out, err = polyvec("classify", *words, "-l", "fox", "-l", "dog", "--json")
    assert code == ExitStatus.INCOMPLETE
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["fox", "lazy dog"]
    assert "in.txt, line 2" in err
    code, out, err = polyvec("rerank", "dog", tmp_path / "in.txt", *words[2:], "--json")
    assert code == ExitStatus.INCOMPLETE
    found = {line["index"]: line["text"] for line in map(json.loads, out.splitlines())}
    assert found == {0: "fox", 2: "lazy dog"}
    assert "in.txt, line 2" in err


@pytest.fixture(scope="module")
def spoilt_model(tiny_model, tiny_config, tiny_weights, tmp_path_factory):
    """The tiny model, with a token of the Chinese text that gives no finite embedding."""
    tokens = Tokenizer.load(tiny_model, tiny_config.max_tokens).encode(["敏捷的"], [""])[0].ids
    table = tiny_weights["embeddings.word.weight"].copy()
    table[tokens[2:-1]] = np.nan
    folder = tmp_path_factory.mktemp("models") / "spoilt"
    save_checkpoint(folder, tiny_config, tiny_weights | {"embeddings.word.weight": table})
    (folder / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    return folder


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
