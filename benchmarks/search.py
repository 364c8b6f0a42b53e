"""What searching many passages costs: indexing, answering, and the index's size.

`python -m benchmarks.search`: 100,000 passages with the bundled model, some ten minutes on two
cores; `--passages 2000` to try it. Each passage is a line of JSON with two sentences of the example
notes, in ten languages; questions are single sentences of them.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

from benchmarks.load import make_texts
from benchmarks.report import describe_machine, table, write_section
from polyvec import Encoder
from polyvec.search import Index

QUESTIONS = 200


def main(passages: int = 100_000, write: bool = True) -> None:
    """Measure, and write the section of docs/performance.md."""
    # LanceDB reports every table it creates as a warning.
    os.environ.setdefault("LANCEDB_LOG", "error")
    encoder = Encoder.load()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(folder, passages)
        index = Index(folder, encoder)
        started = time.perf_counter()
        update = index.update()
        seconds = time.perf_counter() - started
        if update.chunks < passages or update.skipped:
            sys.exit(f"{update.chunks} of {passages} passages were indexed: {update.skipped}")
        sizes = sum(file.stat().st_size for file in index.place.rglob("*") if file.is_file())
        rows = [
            ["indexing", f"{passages / seconds:,.0f} passages/s"],
            ["indexing again, nothing new", f"{timed(index.update):.2f} s"],
            [
                "size of the index",
                f"{sizes / 1e6:,.1f} MB, {sizes / passages:,.0f} bytes a passage",
            ],
        ]
        sparse = {"sparse": 0.0} if index.sparse else {}
        kinds = {
            "by all that the model has": {},
            "by meaning": {"bm25": 0.0} | sparse,
            "by words": {"dense": 0.0} | sparse,
        }
        for name, weights in kinds.items():
            spent = [
                timed(lambda text=text, weights=weights: index.search(text, weights=weights))
                for text in make_texts(QUESTIONS)
            ]
            p50, p95 = np.percentile(spent, [50, 95]) * 1e3
            rows.append([f"a question, {name}", f"p50 {p50:.0f} ms, p95 {p95:.0f} ms"])
    text = "\n\n".join(
        [
            "## Search",
            f"{update.chunks:,} passages in one folder, vectors of {index.dim} float32 numbers, "
            "compared exactly; a question's time includes embedding it.",
            table(["", ""], rows),
            f"{describe_machine('lancedb', 'openvino')} `python -m benchmarks.search`",
        ]
    )
    sys.stdout.write(text + "\n")
    if write:
        write_section("search", text)


def write_rows(folder: Path, passages: int) -> None:
    """Files of 1,000 passages each."""
    told = make_texts(2 * passages)
    for first in range(0, 2 * passages, 2000):
        pairs = zip(told[first : first + 2000 : 2], told[first + 1 : first + 2000 : 2], strict=True)
        lines = [json.dumps(" ".join(pair), ensure_ascii=False) + "\n" for pair in pairs]
        (folder / f"{first:07}.jsonl").write_text("".join(lines), encoding="utf-8")


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    tyro.cli(main)
