"""Recipes as programs: a Python file, or a folder with `__main__.py`."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def run_recipe(recipe: Path, options: Sequence[str]) -> None:
    """Run a recipe with its own command-line options, as `python -m` does.

    If the recipe belongs to a package, it can import the other modules of the package. Raises
    ValueError if the path is neither a Python file nor a folder with `__main__.py`.
    """
    file = recipe / "__main__.py" if recipe.is_dir() else recipe
    if file.suffix != ".py" or not file.is_file():
        raise ValueError(
            f"there is no recipe {recipe}; name a Python file such as recipes/debug.py, "
            "or a folder with a file __main__.py such as recipes/mini"
        )
    sys.argv = [str(recipe), *options]
    folder, packages = file.resolve().parent, list[str]()
    while (folder / "__init__.py").is_file():
        folder, packages = folder.parent, [folder.name, *packages]
    if not packages:
        runpy.run_path(str(file), run_name="__main__")
        return
    sys.path.insert(0, str(folder))
    runpy.run_module(".".join([*packages, file.stem]), run_name="__main__", alter_sys=True)
