"""The source keeps the arrows of docs/design.md and the conventions of CONTRIBUTING.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import polyvec

SOURCE = Path(polyvec.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

FLOORS = (
    (
        "tasks",
        "chunking",
        "config",
        "data_folder",
        "terminal",
        "text_pieces",
        "text_rows",
        "tokenizer_check",
        "records",
        "rejected_rows",
        "arrow_rows",
        "vector_files",
    ),
    ("checkpoint", "tokenizer", "batch", "pooling", "outputs", "heads", "hub", "late_chunking"),
    ("engines", "network"),
    ("encoder", "row_encoding", "reranking", "classification", "export"),
    ("train", "eval", "server", "search", "bulk", "integrations"),
    ("cli", "__main__"),
)
"""Rooms, lowest first. A room imports its own floor or a lower one; on the fifth, only lower."""

TOP = 4

LIGHT = {
    "numpy",
    "jaxtyping",
    "ml_dtypes",
    "openvino",
    "safetensors",
    "sentencex",
    "tokenizers",
    "tqdm",
}
"""Packages that rooms below the top floor may import. `HEAVY` files may import others as well."""

HEAVY = {"polyvec.network", "polyvec.engines.torch", "polyvec.arrow_rows"}
"""Files that need an extra, torch or pyarrow. They are imported where it is needed."""


def module_name(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def floor(name):
    return next(level for level, names in enumerate(FLOORS) if name in names)


def imports(path, *, top_level=False):
    """Full names of the modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            whole = module == "polyvec"
            found += [f"polyvec.{alias.name}" for alias in node.names] if whole else [module]
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_arrows_point_down(path):
    mine = room(module_name(path))
    if mine is None:
        return
    for module in imports(path):
        theirs = room(module) if module.startswith("polyvec.") else None
        is_room = (SOURCE / f"{theirs}").is_dir() or (SOURCE / f"{theirs}.py").is_file()
        if theirs == mine or not is_room:
            continue
        assert floor(theirs) <= floor(mine), f"{mine} imports {theirs}, which stands above it"
        if floor(mine) == TOP:
            assert floor(theirs) < TOP, f"{mine} and {theirs} share the top floor"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_core_imports_only_packages_of_a_plain_install(path):
    module = module_name(path)
    if room(module) is None or floor(room(module)) >= TOP or module in HEAVY:
        return
    allowed = LIGHT | {"polyvec"} | set(sys.stdlib_module_names)
    allowed |= {"huggingface_hub"} if module == "polyvec.hub" else set()
    foreign = {name.split(".")[0] for name in imports(path, top_level=True)} - allowed
    assert not foreign


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_conventions_hold(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module has a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            # The tokenizers library raises nothing more precise than Exception.
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            assert not broad or path.name == "tokenizer.py", f"line {node.lineno}: too broad"
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "it defeats jaxtyping's checks"
        if isinstance(node, ast.Module | ast.ClassDef):
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
                    assert not function.args.kwarg, f"{function.name} swallows mistakes"


def test_files_are_short_enough_to_read():
    long = [path.name for path in FILES if len(path.read_text().splitlines()) > 500]
    assert not long


def test_the_public_names_are_these():
    assert sorted(polyvec.__all__) == [
        "Chunks",
        "Encoder",
        "ModelConfig",
        "NotFiniteError",
        "Outputs",
        "Ranked",
        "Semantic",
        "Sentences",
        "Sparse",
        "TASKS",
        "Task",
        "maxsim",
        "rerank",
        "similarity",
        "to_base64",
        "to_binary",
        "to_int8",
        "to_ubinary",
        "truncate_and_normalise",
    ]
    assert all(hasattr(polyvec, name) for name in polyvec.__all__)


def test_importing_and_encoding_send_nothing_and_import_no_extra(tiny_model):
    # `import openvino` by itself sends a message to Google Analytics.
    script = f"""
import os, sys, warnings
import numpy  # which sets filters of its own
before = dict(os.environ), list(warnings.filters)
import polyvec
assert (dict(os.environ), list(warnings.filters)) == before
assert "openvino" not in sys.modules
polyvec.Encoder.load({str(tiny_model)!r}, device="cpu").encode("fox")
extras = ["torch", "pyarrow", "lancedb", "pandas", "scipy", "openvino_telemetry", "cyclopts"]
print([name for name in [*extras, "openvino.tools.ovc"] if name in sys.modules])
import openvino
assert callable(openvino.convert_model) and not hasattr(openvino, "convert_modle")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "[]", "")
