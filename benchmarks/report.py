"""Sections of pages of docs/, each rewritten by the benchmark that measures it."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def write_section(name: str, body: str, page_path: Path = PAGE) -> None:
    """Replace the section of a page between `name`'s two markers, or append it."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{start}\n{body.strip()}\n{end}"
    page = page_path.read_text() if page_path.exists() else "# Performance\n"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(page):
        page = pattern.sub(lambda _: section, page)
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    page_path.write_text(page)


def describe_machine(*packages: str) -> str:
    """One line: cores, memory, what the CPU can do, versions, date."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {_count_cores()}, "
        f"{memory:.0f} GiB, {' '.join(_flags()) or 'no vector extensions known'}; "
        f"Python {platform.python_version()}, {versions}."
    )


def _count_cores() -> str:
    """Those that this process may use (`taskset` on Linux gives it fewer)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "1 core" if allowed == 1 else f"{allowed} cores"


def _flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else subprocess.getoutput("sysctl machdep.cpu")
    present = set(text.lower().split())
    return [flag for flag in FLAGS if flag in present]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
