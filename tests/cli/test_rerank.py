import json
from typing import get_args, get_type_hints

import pytest

from polyvec.cli.rerank import rerank
from polyvec.reranking import HYBRID, RETRIEVAL
from polyvec.terminal import ExitStatus


def test_a_file_without_texts_has_status_1(polyvec, tiny_model, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    code, out, err = polyvec("rerank", "fox", tmp_path / "empty.txt", "--model", tiny_model)
    assert (code, out) == (ExitStatus.INCOMPLETE, "")
    assert "no text to rank in" in err


def test_the_choices_are_the_models_outputs_and_their_combination():
    by = get_args(get_type_hints(rerank)["by"])
    assert set(by) == {*HYBRID, "hybrid"}
    assert RETRIEVAL


@pytest.fixture
def pairs(tmp_path):
    """Questions with candidates; a row has no question, and a column has the name of a result."""
    path = tmp_path / "pairs.csv"
    path.write_text(
        "id,question,answer,score\n1,fox,dog,7\n2,fox,fox,8\n,fox,owl,9\n4,dog,fox,\n5,,owl,\n6,dog,dog,\n"
    )
    return path


def test_the_rows_of_each_query_are_ranked_by_themselves(polyvec, tiny_model, pairs, tmp_path):
    words = ["rerank", pairs, "--query-column", "question", "--text-column", "answer"]
    words += ["--task", "text-matching", "--model", tiny_model, "--top", 1]
    code, out, err = polyvec(*words, "--json", "--id-column", "id")
    assert code == ExitStatus.INCOMPLETE
    assert "line 4: id is missing" in err and "line 6: question is missing" in err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["question"], row["answer"], row["id"]) for row in rows] == [
        ("fox", "fox", "2"),
        ("dog", "dog", "6"),
    ]
    assert [(row["given_score"], round(row["score"], 3)) for row in rows] == [("8", 1), ("", 1)]
    code, out, _ = polyvec(*words)
    assert out.splitlines() == ["fox", "1.000  fox", "dog", "1.000  dog"]


def test_an_id_is_shown_before_its_text(polyvec, tiny_model, pairs):
    words = ["--text-column", "answer", "--id-column", "id", "--model", tiny_model]
    code, out, _ = polyvec("rerank", "fox", pairs, "--task", "text-matching", *words)
    assert code == ExitStatus.INCOMPLETE
    assert {line.split(maxsplit=1)[1] for line in out.splitlines()} == {
        "1  dog",
        "2  fox",
        "4  fox",
        "5  owl",
        "6  dog",
    }


def test_a_query_comes_from_one_place(polyvec, tiny_model, pairs):
    for words in (["fox", pairs, "--query-column", "question"], ["fox"]):
        code, _, err = polyvec("rerank", *words, "--model", tiny_model)
        assert code == ExitStatus.REFUSED
        assert "QUERY" in err
