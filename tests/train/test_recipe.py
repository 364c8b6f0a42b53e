"""Recipes as programs: files, folders, and modules of a package."""

import subprocess
import sys
from pathlib import Path

import pytest

from polyvec.train.recipe import run_recipe

SAY = "import sys; from pathlib import Path; Path(sys.argv[1]).write_text(__name__ + OTHER)"


def run(recipe: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run a recipe in its own process, because it changes `sys.argv` and `sys.path`."""
    call = f"run_recipe(Path({str(recipe)!r}), [{str(out)!r}])"
    script = f"from pathlib import Path; from polyvec.train.recipe import run_recipe; {call}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["alone.py", "pack", "pack/sub", "pack/module.py"])
def test_a_file_a_folder_and_a_module_run_as_programs(name: str, tmp_path: Path) -> None:
    for folder in ("pack", "pack/sub"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "pack/other.py").write_text("OTHER = ' with its package'")
    for file in ("pack/__main__.py", "pack/sub/__main__.py", "pack/module.py"):
        (tmp_path / file).write_text(f"from pack.other import OTHER; {SAY}")
    (tmp_path / "alone.py").write_text(f"OTHER = ''; {SAY}")
    done = run(tmp_path / name, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    expected = "__main__" if name == "alone.py" else "__main__ with its package"
    assert (tmp_path / "out").read_text() == expected


def test_a_path_without_a_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path, tmp_path / "none.py", tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=r"name a Python file such as recipes/debug\.py"):
            run_recipe(path, [])
