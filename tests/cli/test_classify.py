import json
from inspect import signature

import pytest

from polyvec.cli.classify import classify
from polyvec.tasks import CLASSIFICATION
from polyvec.terminal import ExitStatus

LABELS = ["-l", "fox", "-l", "dog"]


def test_the_default_task_is_that_of_the_room():
    assert signature(classify).parameters["task"].default == CLASSIFICATION


def test_given_labels_stay_beside_those_found_and_the_accuracy_is_told(
    polyvec, tiny_model, tmp_path
):
    (tmp_path / "in.csv").write_text("id,text,label\n1,fox,fox\n2,dog,fox\n3,fox,\n4,dog,dog\n")
    words = ["classify", "-i", tmp_path / "in.csv", *LABELS, "--model", tiny_model]
    code, out, err = polyvec(*words, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == ExitStatus.DONE
    assert [row["given_label"] for row in rows] == ["fox", "fox", "", "dog"]
    assert [row["label"] for row in rows] == ["fox", "dog", "fox", "dog"]
    assert "accuracy 0.667: 2 of 3 texts" in err
    code, out, _ = polyvec(*words, "--id-column", "id")
    assert [line.split()[1:] for line in out.splitlines()] == [
        ["fox", "(given:", "fox)", "1", "fox"],
        ["dog", "(given:", "fox)", "2", "dog"],
        ["fox", "3", "fox"],
        ["dog", "(given:", "dog)", "4", "dog"],
    ]


def test_columns_of_any_name_are_used_for_examples_and_texts(polyvec, tiny_model, tmp_path):
    (tmp_path / "known.tsv").write_text("kind\tbody\n1\tfox\n0\tdog\n1\t\n")
    (tmp_path / "in.jsonl").write_text('{"body": "fox", "kind": 1.0}\n{"body": "dog", "kind": 1}\n')
    words = ["-i", tmp_path / "in.jsonl", "--examples", tmp_path / "known.tsv", "--json"]
    words += ["--text-column", "body", "--label-column", "kind", "--model", tiny_model]
    code, out, err = polyvec("classify", *words)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["kind"], row["label"]) for row in rows] == [(1, "1"), (1, "0")]
    assert "accuracy 0.500" in err
    assert code == ExitStatus.INCOMPLETE
    assert "known.tsv, line 4: body is empty" in err


def test_a_bad_row_costs_no_other_and_the_column_of_labels_must_exist(
    polyvec, tiny_model, tmp_path
):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "fox"}\n{"no": 1}\n"dog"\n')
    words = ["classify", "-i", path, *LABELS, "--model", tiny_model]
    code, out, err = polyvec(*words, "--rejected", tmp_path / "bad.jsonl")
    assert (code, len(out.splitlines())) == (ExitStatus.INCOMPLETE, 2)
    assert "line 2: text is missing" in err
    assert json.loads((tmp_path / "bad.jsonl").read_text())["row"] == {"no": 1}
    (tmp_path / "in.csv").write_text("text\nfox\n")
    words[2] = tmp_path / "in.csv"
    code, _, err = polyvec(*words, "--label-column", "kind")
    assert code == ExitStatus.REFUSED
    assert "lacks the column kind" in err


@pytest.mark.parametrize("content", ["", "text\n"])
def test_nothing_to_classify_is_told(polyvec, tiny_model, tmp_path, content):
    path = tmp_path / ("in.csv" if content else "in.txt")
    path.write_text(content)
    code, out, err = polyvec("classify", "-i", path, *LABELS, "--model", tiny_model)
    assert (code, out) == (ExitStatus.INCOMPLETE, "")
    assert f"no text to classify in {path}" in err
