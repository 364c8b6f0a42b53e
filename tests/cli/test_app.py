import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import polyvec as package
from polyvec.cli import EXTRAS
from polyvec.terminal import ExitStatus

SOURCE = Path(package.__file__).parent
PROJECT = Path(__file__).parents[2] / "pyproject.toml"

CORE = {
    "cyclopts",
    "jaxtyping",
    "ml_dtypes",
    "numpy",
    "openvino",
    # Dependencies of cyclopts.
    "docstring_parser",
    "rich",
    "safetensors",
    "sentencex",
    "tokenizers",
    "tqdm",
}
"""Packages of an install without extras."""


def run_script(script):
    """Run Python in a process of its own, in which no verb has been imported yet."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["embed", "a", "--dim", "x"], "--dim"),
        (["embed", "a", "--dim", "7"], "8, 16, 32"),
        (["embed", "a", "--task", "cooking"], "retrieval.query"),
        (["embed", "a", "--model", "/no/where"], "/no/where"),
        (["embed", "a", "-i", "b"], "not both"),
        (["embed", "a", "--format", "npy"], "--out"),
        (["embed", "a", "-o", "vectors.csv"], "--format"),
        (["embed", "-i", "/no/where.txt"], "/no/where.txt"),
        (["search", "/no/where", "question"], "/no/where"),
        (["search", "."], "QUESTION"),
        (["search", ".", " "], "empty"),
        (["search", ".", "a", "--top", "0"], "--top"),
        (["search", ".", "a", "--near", "b"], "not both"),
        (["dedupe", "/no/where"], "/no/where"),
        (["cluster", "/no/where"], "/no/where"),
        (["info", "/no/where"], "/no/where"),
        (["export", "/no/where", "here"], "/no/where"),
        (["sing"], "embed"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(polyvec, tiny_model, words, part):
    if words[0] == "embed" and "--model" not in words:
        words = [*words, "--model", tiny_model]
    code, out, err = polyvec(*words)
    assert (code, out) == (ExitStatus.REFUSED, "")
    assert err.startswith("polyvec: ")
    assert err.count("\n") == 1
    assert part in err


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        ("search . fox", "lancedb", "search"),
        ("serve", "uvicorn", "server"),
        ("train negatives a.parquet b.parquet", "pyarrow", "train"),
        ("eval report", "matplotlib", "eval"),
    ],
)
def test_a_missing_extra_is_named(words, module, extra):
    run = run_script(
        f"import sys; sys.modules[{module!r}] = None; from polyvec.cli import main; "
        f"sys.argv[1:] = {words.split()}; main()"
    )
    assert run.returncode == ExitStatus.REFUSED
    needs = f"polyvec: this command needs {module}: pip install 'polyvec[{extra}]'\n"
    assert run.stderr == needs


def test_every_package_that_may_be_missing_has_an_extra():
    known = CORE | EXTRAS.keys() | {"polyvec"} | set(sys.stdlib_module_names)
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in known, f"{path} imports {name}"
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert {extra for names in EXTRAS.values() for extra in names} <= extras.keys()


def test_every_help_works_in_the_core_install_and_imports_no_engine():
    run = run_script(f"""
import json, sys
for name in {sorted(EXTRAS)}:
    sys.modules[name] = None
from polyvec.cli import VERBS, app, run
statuses = {{"": run(["--help"])}}
for verb in VERBS:
    nested = [] if app[verb].default_command else [n for n in app[verb] if n[0] != "-"]
    for words in [[verb], *([verb, name] for name in nested)]:
        statuses[" ".join(words)] = run([*words, "--help"])
statuses["engines"] = sum(name in sys.modules for name in ("openvino", "polyvec.network"))
sys.stderr.write(json.dumps(statuses))
""")
    statuses = json.loads(run.stderr)
    assert "eval late-chunking" in statuses
    assert {name for name, status in statuses.items() if status} == set()
    assert 'polyvec embed "Hello"' in run.stdout


def test_only_the_file_of_the_verb_that_is_called_is_imported():
    run = run_script("""
import sys
from polyvec.cli import run
run(["info", "--help"])
sys.exit(any(f"polyvec.cli.{name}" in sys.modules for name in ("embed", "search", "eval")))
""")
    assert run.returncode == 0, run.stderr


def test_the_first_page_shows_the_summary_of_every_verb(polyvec):
    code, out, _ = polyvec("--help")
    assert code == 0
    for summary in ("Embed texts", "Find the passages", "Score models", "Serve models"):
        assert summary in out
    assert polyvec()[1] == out


def test_paragraphs_of_help_are_as_wide_as_the_page(polyvec):
    _, out, _ = polyvec("eval", "long", "--help")
    assert "(arXiv:2409.10173, section \n3)" in out.replace("│", "") or "section 3)" in out
    assert "Usage: polyvec eval long" in out
