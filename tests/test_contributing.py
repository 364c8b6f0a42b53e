"""CONTRIBUTING.md and docs/design.md name files, functions and floors that exist."""

import ast
import json
import re
from pathlib import Path

import pytest

from polyvec.checkpoint import fingerprint
from tests.test_architecture import FLOORS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "polyvec"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")

WHERE = CONTRIBUTING.split("## Where do I change ...?")[1].split("\n## ")[0]
"""The table that says which file to edit for which purpose."""

PATH = r"`([\w./-]*/|[\w./-]+\.(?:py|md|safetensors))`"
"""A path in backticks: a folder that ends with a slash, or a file of one of these kinds."""

NOT_IN_THE_REPOSITORY = {"runs/"}


def locate(name):
    """The file or folder that a page means, or None."""
    return next((base / name for base in (SOURCE, ROOT) if (base / name).exists()), None)


def top_level_names(path):
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize(
    "name", sorted({*re.findall(PATH, CONTRIBUTING), *re.findall(PATH, DESIGN)})
)
def test_a_file_that_the_pages_name_exists(name):
    assert name in NOT_IN_THE_REPOSITORY or locate(name)


@pytest.mark.parametrize(("name", "symbol"), re.findall(r"`([\w/]+\.py)` \(`(\w+)`\)", WHERE))
def test_a_name_in_the_table_is_defined_in_its_file(name, symbol):
    assert symbol in top_level_names(SOURCE / name)


def test_the_table_covers_these_changes():
    changes = [line.split("|")[1].strip() for line in WHERE.splitlines() if line.startswith("| ")]
    assert {
        "a loss",
        "a training objective",
        "a dialect or a route of the API",
        "an output encoding",
        "an evaluation metric or kind of task",
        "an error code",
        "a weight quantisation",
        "a built-in task",
        "chunking",
        "a table format",
        "a command",
        "an engine",
    } <= set(changes)


def test_the_design_page_draws_the_floors_that_are_tested():
    block = DESIGN.split("## Imports point downwards")[1].split("```")[1]
    drawn = [set(line.split(", ")) for line in block.strip().splitlines()]
    modules = {path.stem for path in SOURCE.iterdir()} - {"__main__"}
    assert drawn == [set(floor) & modules for floor in FLOORS]


def test_the_tree_of_the_design_page_names_every_module():
    tree = DESIGN.split("## Where things are")[1].split("```")[1]
    for path in SOURCE.iterdir():
        if path.name not in ("__init__.py", "__main__.py", "__pycache__", "models", "py.typed"):
            assert f"  {path.name}{'/' * path.is_dir()} " in tree


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md", "docs/log.md"])
def test_links_lead_to_files(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_results_of_the_bundled_model_are_of_the_bundled_weights():
    results = [json.loads(path.read_text()) for path in (ROOT / "results").glob("*.json")]
    revisions = {result["revision"] for result in results if result["model"] == "polyvec-mini"}
    assert revisions == {fingerprint(SOURCE / "models" / "mini")}
