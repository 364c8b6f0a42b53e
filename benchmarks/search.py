"""The cost of search over many passages: indexing, answering, and the size of each index.

    python -m benchmarks.search --data DATA                          # writes docs/performance.md
    python -m benchmarks.search --passages 400 --kills 3 --no-write  # a trial

It indexes 100,000 passages in many languages with the bundled model, and kills an indexing process
20 times. Without a data folder, the passages are sentences of the example notes. Each passage is
embedded once: the index of floats is copied, and then its vectors are quantised.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import tyro

from benchmarks.corpora import optional_data, read_passages, read_questions
from benchmarks.kills import kill_often
from benchmarks.report import describe_machine, table, write_section
from polyvec import Encoder
from polyvec.search import Index
from polyvec.search.index_table import TABLE
from polyvec.search.table_files import TableFiles
from polyvec.search.vectors import Quantise

FORMS: tuple[Quantise, ...] = ("float", "int8", "binary")

QUERY_COLUMNS = ("hybrid p50, p95", "dense p50, p95", "BM25 p50, p95")


def main(
    passages: int = 100_000,
    questions: int = 200,
    kills: int = 20,
    data: Path | None = None,
    write: bool = True,
) -> None:
    """Measure, and write the tables to docs/performance.md."""
    encoder, data = Encoder.load(), optional_data(data)
    asked = read_questions(data, questions)
    with tempfile.TemporaryDirectory() as root:
        folder, first = Path(root) / "texts", Path(root) / "float"
        texts = read_passages(data, passages)
        write_rows(folder, texts)
        index = Index(folder, encoder, directory=first)
        started = time.perf_counter()
        update = index.update()
        seconds = time.perf_counter() - started
        if update.passages < passages or update.skipped:
            sys.exit(f"{update.passages} of {passages} passages were indexed: {update.skipped}")
        rate = update.passages / seconds
        rows = []
        for form in FORMS:
            directory = Path(root) / form
            if directory != first:
                shutil.copytree(first, directory)
            index = Index(folder, encoder, directory=directory, quantise=form)
            changing = timed(index.update)
            rows.append(measure(form, index, update.passages, asked, changing))
        tried = "" if not kills else kill_often(Path(root) / "killed", texts, encoder, kills, rate)
    text = "\n\n".join(
        [
            f"{update.passages:,} passages with vectors of {index.dim} numbers, indexed at "
            f"{rate:,.0f} passages per second.",
            table(["vectors", "size", "bytes/passage", *QUERY_COLUMNS, "update"], rows),
            *([tried] if tried else []),
            f"{describe_machine('lancedb', 'openvino')} `python -m benchmarks.search`",
        ]
    )
    sys.stdout.write(text + "\n")
    if write:
        write_section("search", text)


def write_rows(folder: Path, passages: list[str]) -> None:
    """Write files of 1,000 passages each, with one line of JSON per passage."""
    folder.mkdir()
    for first in range(0, len(passages), 1000):
        lines = [json.dumps(text, ensure_ascii=False) + "\n" for text in passages[first:][:1000]]
        (folder / f"{first:07}.jsonl").write_text("".join(lines), encoding="utf-8")


def measure(
    form: str, index: Index, passages: int, questions: list[str], changing: float
) -> list[str]:
    """Return a row of the table."""
    # LanceDB keeps earlier versions of the table for an hour. They do not count.
    files = TableFiles(index.directory / f"{TABLE}.lance")
    files.begin_change()
    lancedb.connect(index.directory).open_table(TABLE).optimize(
        cleanup_older_than=timedelta(milliseconds=1)
    )
    files.finish_change()
    size = sum(file.stat().st_size for file in index.directory.rglob("*") if file.is_file())
    row = [f"`{form}`", f"{size / 1e6:,.1f} MB", f"{size / passages:,.0f}"]
    sparse = {"sparse": 0.0} if index.sparse else {}
    for weights in ({}, {"bm25": 0.0} | sparse, {"dense": 0.0} | sparse):
        spent = [
            timed(lambda text=text, weights=weights: index.search(text, weights=weights))
            for text in questions
        ]
        p50, p95 = np.percentile(spent, [50, 95]) * 1e3
        row.append(f"{p50:.0f}, {p95:.0f} ms")
    return [*row, f"{changing:.2f} s"]


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    tyro.cli(main)
