from dataclasses import MISSING, fields
from inspect import signature

from polyvec.cli.train import adapter
from polyvec.train.new_task import Options


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
        field.name: field.default for field in fields(Options) if field.default is not MISSING
    }
    assert {name: signature(adapter).parameters[name].default for name in defaults} == defaults
