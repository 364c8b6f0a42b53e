"""The README's commands run, and every page's Python prints what the page says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
POLYVEC = [sys.executable, "-m", "polyvec"]

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

PYTHON = [
    pytest.param(*blocks, id=f"{page.name}-{number}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, blocks in enumerate(
        re.findall(
            r"^```py\n((?:(?!```).*\n)*)```\n\n```\n((?:(?!```).*\n)*)```$",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
]
"""Python, and what it prints, of every page."""

COMMANDS = [
    line
    for kind, body in BLOCKS
    if kind == "sh"
    for line in body.splitlines()
    if line.startswith("polyvec") and "notes/" not in line.replace("examples/notes/", "")
]


@pytest.fixture
def workspace(tmp_path):
    """A copy of what the commands read, so that they write nothing into the repository."""
    for name in ("examples", "docs"):
        (tmp_path / name).mkdir()
        for path in (ROOT / name).rglob("*"):
            # It is a third of all words, and takes a slow machine a long time.
            if path.suffix in (".md", ".txt") and path.name != "log.md":
                copy = tmp_path / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    return tmp_path


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command, workspace):
    words = shlex.split(command)[1:]
    run = subprocess.run([*POLYVEC, *words], cwd=workspace, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("code", "printed"), PYTHON)
def test_python_prints_what_the_page_says(code, printed):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (printed, "")


def test_the_tree_names_every_room():
    tree = next(body for _, body in BLOCKS if body.startswith("src/polyvec/"))
    for path in (ROOT / "src" / "polyvec").iterdir():
        if path.name not in ("__init__.py", "__main__.py", "__pycache__", "models", "py.typed"):
            assert f"  {path.name}{'/' * path.is_dir()} " in tree


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists()
