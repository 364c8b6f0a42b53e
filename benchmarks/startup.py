"""Start-up time and memory of the command line and of the full-size model, and the install size.

Run `python -m benchmarks.size` first, and then `python -m benchmarks.startup`, which takes two
minutes. It installs the package into a fresh environment, which needs a package index.
"""

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median

import tyro

from benchmarks.report import describe_machine, table, write_section

ROOT = Path(__file__).parent.parent
LOAD = """
import sys
from pathlib import Path
from polyvec import Encoder
merge = sys.argv[2] if len(sys.argv) > 2 else None
Encoder.load(Path(sys.argv[1]), device="cpu", merge=merge).encode(["A text."], task=merge)
"""


def main(folder: Path = Path("build/full"), runs: int = 5, install: bool = True) -> None:
    """Measure, and write the tables to docs/performance.md."""
    embed = [sys.executable, "-m", "polyvec", "embed", "A text."]
    load = [sys.executable, "-c", LOAD, str(folder)]
    # Other sub-folders can contain files of `benchmarks.speed`.
    files = [*folder.glob("*.safetensors"), *folder.glob("*/adapter_model.safetensors")]
    stored = sum(file.stat().st_size for file in files)
    rows = []
    for name, command in (
        ("`polyvec embed TEXT`, bundled model, whole process", embed),
        (f"load {folder.name} ({stored / 1e9:.2f} GB in bf16) and embed one text", load),
        ("the same, one task merged into the weights", [*load, "retrieval.passage"]),
    ):
        # The first run is not counted, because it may read from a cold disk.
        measured = [run(command) for _ in range(runs + 1)][1:]
        seconds, peak = median(m[0] for m in measured), max(m[1] for m in measured)
        ratio = f"{peak / stored:.2f}" if command[1] == "-c" else ""
        rows.append([name, f"{seconds:.2f} s", f"{peak / 1e6:,.0f} MB", ratio])
    body = [table(["", f"time, median of {runs}", "peak memory", "memory / file size"], rows)]
    if install:
        body.append(install_fresh())
    body.append(f"{describe_machine('openvino', 'tokenizers')} `python -m benchmarks.startup`")
    text = "\n\n".join(body)
    sys.stdout.write(text + "\n")
    if folder.name == "full":
        write_section("startup", text)


def run(command: list[str]) -> tuple[float, int]:
    """Run a process, and return its seconds of wall time and its peak resident bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # wait4 returns the usage of this child alone, and not that of all children.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command[:4])} failed with status {status}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def install_fresh() -> str:
    """Install the package into an empty environment, and return a sentence about its size."""
    with tempfile.TemporaryDirectory() as place:
        venv.create(place, with_pip=True)
        python = Path(place) / "bin" / "python"
        packages = next(Path(place).glob("lib/*/site-packages"))
        before = {path.name for path in packages.iterdir()}
        subprocess.run([python, "-m", "pip", "install", "--quiet", ROOT], check=True)
        sizes = {
            path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            for path in packages.iterdir()
            if path.name not in before and path.is_dir()
        }
    if "torch" in sizes:
        sys.exit("the core install contains PyTorch")
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    listed = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in largest)
    total = sum(sizes.values()) / 1e6
    return f"`pip install .` in a fresh environment: **{total:.0f} MB** (largest: {listed}; MB)."


if __name__ == "__main__":
    tyro.cli(main)
