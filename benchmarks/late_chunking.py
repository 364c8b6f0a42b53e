"""What late chunking costs: beside plain encoding of the same text, and on a very long document.

`python -m benchmarks.late_chunking`, twenty minutes on two cores; it writes its section of
docs/performance.md.

1. Documents of one window each are encoded whole (`encode`) and in chunks (`encode_chunks`), the
   two taking turns; the best time of each counts.
2. A process of its own reads one document of a million tokens in overlapping windows, and says how
   much memory it ever held; before it, one of a single window.
"""

import resource
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import tyro

from benchmarks.report import describe_machine, table, write_section
from polyvec import Encoder

TEXT = Path(__file__).parent.parent / "docs"
TASK = "retrieval.passage"


def main(
    tokens: int = 2_000,
    documents: int = 4,
    rounds: int = 3,
    long: int = 1_000_000,
    window: int = 2_048,
    write: bool = True,
    alone: bool = False,
) -> None:
    """Measure, and write the section; `alone` only reads the long document, in this process.

    `window` is of the long document, where attention takes most of the time in larger ones.
    """
    encoder = Encoder.load()
    if alone:
        read_long(encoder, long, window)
        return
    text = make_text(encoder, tokens)
    texts = [f"{number} {text}" for number in range(documents)]
    count = sum(encoder.tokenizer.count(text) for text in texts)
    rows = []
    plain = [0.0] * rounds
    for size in (64, 256, 512):
        chunked = [0.0] * rounds
        for turn in range(rounds):
            start = time.perf_counter()
            encoder.encode(texts, task=TASK, progress=False)
            plain[turn] = time.perf_counter() - start
            start = time.perf_counter()
            for document in texts:
                encoder.encode_chunks(document, task=TASK, chunks=size)
            chunked[turn] = time.perf_counter() - start
        speed = count / min(chunked), count / min(plain)
        rows.append([str(size), *(f"{s:,.0f}" for s in speed), f"{speed[0] / speed[1]:.0%}"])
    command = [sys.executable, "-m", "benchmarks.late_chunking", "--alone"]
    command += ["--long", str(long), "--window", str(window)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    body = [
        "## Late chunking",
        f"Tokens a second over {documents} documents of {tokens:,} tokens, the bundled model: in "
        "chunks of some size, and as one vector each.",
        table(["chunk", "`encode_chunks`", "`encode`", ""], rows),
        found.strip(),
        f"{describe_machine('openvino')} `python -m benchmarks.late_chunking`",
    ]
    text = "\n\n".join(body)
    sys.stdout.write(text + "\n")
    if write:
        write_section("late-chunking", text)


def make_text(encoder: Encoder, tokens: int) -> str:
    """About so many tokens of this project's documentation, again and again."""
    lines = [line for page in sorted(TEXT.glob("*.md")) for line in page.read_text().splitlines()]
    per_line = encoder.tokenizer.count("\n".join(lines)) / len(lines)
    return "\n".join(islice(cycle(lines), int(tokens / per_line)))


def read_long(encoder: Encoder, tokens: int, window: int) -> None:
    """Say how long the chunks of one long document took, and the most memory ever held."""
    encoder.encode_chunks(make_text(encoder, window), task=TASK, chunks=512, window=window)
    first = find_peak()
    text = make_text(encoder, tokens)
    start = time.perf_counter()
    found = encoder.encode_chunks(text, task=TASK, chunks=512, window=window)
    seconds = time.perf_counter() - start
    sys.stdout.write(
        f"One document of {encoder.tokenizer.count(text):,} tokens, in {len(found.vectors):,} "
        f"chunks of 512, read in windows of {window:,}: {seconds:,.0f} s. At most "
        f"{find_peak():,.0f} MB of memory; {first:,.0f} MB for a first window alone.\n"
    )


def find_peak() -> float:
    """The most memory this process has ever held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    tyro.cli(main)
