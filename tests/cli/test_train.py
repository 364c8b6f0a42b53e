import json
from dataclasses import MISSING, fields
from inspect import signature

import pyarrow as pa
import pyarrow.parquet as pq

from polyvec.cli.train import adapter
from polyvec.terminal import ExitStatus
from polyvec.train.options import Options


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


def test_the_defaults_of_an_adapter_are_those_of_the_room():
    defaults = {
        field.name: field.default
        for field in fields(Options)
        if field.default is not MISSING and field.name != "full"
    }
    assert {name: signature(adapter).parameters[name].default for name in defaults} == defaults


def test_a_pair_without_a_text_costs_no_other_pair(polyvec, tiny_model, tmp_path):
    texts = ["fox", "lazy dog", None, "snow", "den"]
    columns = {"question": texts, "answer": [text and f"a {text}" for text in texts]}
    path, out = tmp_path / "pairs.parquet", tmp_path / "mined.parquet"
    pq.write_table(pa.table(columns | {"lang": ["en"] * 5}), path)
    words = ["train", "negatives", path, out, "--model", tiny_model]
    words += ["--query-column", "question", "--text-column", "answer"]
    code, _, err = polyvec(*words)
    assert code == ExitStatus.DONE
    assert f"{path}, row 3: question is missing" in err
    assert pq.read_table(out)["query"].to_pylist() == [text for text in texts if text]
    [bad] = (tmp_path / "mined.parquet.rejected.jsonl").read_text().splitlines()
    assert json.loads(bad)["number"] == 3


def test_a_file_without_pairs_is_named_in_one_sentence(polyvec, tiny_model, tmp_path):
    path = tmp_path / "empty.parquet"
    columns = {name: pa.array([], pa.string()) for name in ("query", "positive", "lang")}
    pq.write_table(pa.table(columns), path)
    for name, part in (
        ("empty.parquet", "has no usable row"),
        ("gone.parquet", "there is no file"),
    ):
        words = ["train", "negatives", tmp_path / name, tmp_path / "out", "--model", tiny_model]
        code, _, err = polyvec(*words)
        assert (code, err.count("\n")) == (ExitStatus.REFUSED, 1)
        assert name in err and part in err
