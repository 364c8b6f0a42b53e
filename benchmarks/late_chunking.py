"""The cost of late chunking, compared with plain encoding, and on a very long document.

`python -m benchmarks.late_chunking` takes twenty minutes on two cores, and writes its tables to
docs/performance.md.

1. Documents of one window each are encoded whole (`encode`) and in chunks (`encode_chunks`), in
   turn. The best time of each counts.
2. A separate process encodes one document of a million tokens in overlapping windows, and reports
   its peak memory. Before that it encodes a document of a single window.
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
    """Measure, and write the tables. `alone` only encodes the long document, in this process.

    `window` is the window of the long document, in tokens. In larger windows attention takes most
    of the time.
    """
    encoder = Encoder.load()
    if alone:
        encode_long(encoder, long, window)
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
    long_table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    body = [
        table(["tokens per chunk", "`encode_chunks`", "`encode`", "relative speed"], rows),
        long_table.strip(),
        f"{describe_machine('openvino')} `python -m benchmarks.late_chunking`",
    ]
    text = "\n\n".join(body)
    sys.stdout.write(text + "\n")
    if write:
        write_section("late-chunking", text)


def make_text(encoder: Encoder, tokens: int) -> str:
    """Return about this many tokens of text. It repeats this project's documentation."""
    lines = [line for page in sorted(TEXT.glob("*.md")) for line in page.read_text().splitlines()]
    per_line = encoder.tokenizer.count("\n".join(lines)) / len(lines)
    return "\n".join(islice(cycle(lines), int(tokens / per_line)))


def encode_long(encoder: Encoder, tokens: int, window: int) -> None:
    """Encode the chunks of one long document, and print the time and the peak memory."""
    encoder.encode_chunks(make_text(encoder, window), task=TASK, chunks=512, window=window)
    one_window_peak = peak_memory()
    text = make_text(encoder, tokens)
    start = time.perf_counter()
    chunks = encoder.encode_chunks(text, task=TASK, chunks=512, window=window)
    seconds = time.perf_counter() - start
    numbers = [
        f"{encoder.tokenizer.count(text):,}",
        f"{len(chunks.vectors):,}",
        f"{window:,}",
        f"{seconds:,.0f} s",
        f"{peak_memory():,.0f} MB",
        f"{one_window_peak:,.0f} MB",
    ]
    header = ["tokens", "chunks of 512", "window", "time", "peak memory", "of one window"]
    sys.stdout.write(table(header, [numbers]) + "\n")


def peak_memory() -> float:
    """Return the peak memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    tyro.cli(main)
