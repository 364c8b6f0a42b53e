"""Tables in docs/, each written between two markers by the benchmark that measures it."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "results"
"""Folder of the plots."""

CPU_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def write_section(name: str, body: str, page_path: Path = PAGE) -> None:
    """Replace the text between the markers `<!-- name -->` and `<!-- /name -->` of a page.

    Headings and explanations stand outside the markers. Raises ValueError if the page has no such
    markers.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    section = f"{start}\n{body.strip()}\n{end}"
    page, num_sections = pattern.subn(lambda _: section, page_path.read_text())
    if not num_sections:
        raise ValueError(f"{page_path} has no markers {start} and {end}")
    page_path.write_text(page)


def describe_machine(*packages: str) -> str:
    """Describe a measurement in one line: date, cores, memory, vector extensions and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {_count_cores()}, "
        f"{memory:.0f} GiB, {' '.join(_cpu_flags()) or 'no known vector extensions'}; "
        f"Python {platform.python_version()}, {versions}."
    )


def _count_cores() -> str:
    """Describe the cores that this process may use, which `taskset` can limit on Linux."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "1 core" if allowed == 1 else f"{allowed} cores"


def _cpu_flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else subprocess.getoutput("sysctl machdep.cpu")
    present = set(text.lower().split())
    return [flag for flag in CPU_FLAGS if flag in present]


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe_run(name: str, minutes: float, rows: list[list[str]], plot: str, caption: str) -> str:
    """The part of docs/serving.md on a run of the server: its table, its plot and its command."""
    return "\n\n".join(
        [
            table([f"{minutes:g} minutes", ""], rows),
            f"![{caption}](../results/{plot})",
            f"{describe_machine('openvino', 'uvicorn')} "
            f"`python -m benchmarks.{name} --minutes {minutes:g}`",
        ]
    )
