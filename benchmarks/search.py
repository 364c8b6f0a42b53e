"""What searching many passages costs: indexing, answering, and the index's size in each form.

`python -m benchmarks.search`: 100,000 passages in many languages with the bundled model, and 20
kills of an indexing process; `--passages 400 --kills 3 --no-write` to try it. The model reads each
passage once: the index of floats is copied, and its vectors are made smaller.
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

from benchmarks.corpora import read_passages, read_questions
from benchmarks.kills import kill_often
from benchmarks.report import describe_machine, table, write_section
from polyvec import Encoder
from polyvec.search import Index
from polyvec.search.index import TABLE
from polyvec.search.vectors import Quantise

FORMS: tuple[Quantise, ...] = ("float", "int8", "binary")


def main(
    passages: int = 100_000,
    questions: int = 200,
    kills: int = 20,
    data: Path = Path("../shared/data"),
    write: bool = True,
) -> None:
    """Measure, and write the section of docs/performance.md."""
    encoder = Encoder.load()
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
            "## Search",
            f"{update.passages:,} passages in one folder, vectors of {index.dim} numbers; indexed "
            f"at {rate:,.0f} passages/s. A question's time includes embedding it: by all that the "
            "model has as `polyvec search` weighs it, by meaning alone, and by words alone. The "
            "index's size includes the passages' texts and the index of their words; `again` is an "
            "update that finds nothing new, or that makes the vectors of `float` smaller.",
            table(
                ["", "size", "bytes/passage", "all p50, p95", "meaning p50, p95", "words", "again"],
                rows,
            ),
            *([tried] if tried else []),
            f"{describe_machine('lancedb', 'openvino')} `python -m benchmarks.search`",
        ]
    )
    sys.stdout.write(text + "\n")
    if write:
        write_section("search", text)


def write_rows(folder: Path, passages: list[str]) -> None:
    """Files of 1,000 passages each, a line of JSON a passage."""
    folder.mkdir()
    for first in range(0, len(passages), 1000):
        lines = [json.dumps(text, ensure_ascii=False) + "\n" for text in passages[first:][:1000]]
        (folder / f"{first:07}.jsonl").write_text("".join(lines), encoding="utf-8")


def measure(
    form: str, index: Index, passages: int, questions: list[str], changing: float
) -> list[str]:
    """A row of the table."""
    # Older states of the table are kept for an hour; they are not what an index needs.
    lancedb.connect(index.directory).open_table(TABLE).optimize(
        cleanup_older_than=timedelta(milliseconds=1)
    )
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
    """Seconds that it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    tyro.cli(main)
