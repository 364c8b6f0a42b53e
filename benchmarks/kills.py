"""Kill an indexing process repeatedly at random times, and check the index each time.

1. Some files are written again, so that there is always something to index.
2. A process indexes the folder. It gets SIGKILL at a random time after its first passages.
3. The index must open, answer a query, and contain no passage twice.
4. At the end one process runs to completion. The index must then contain every passage of the files
   exactly once, with its vector.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import numpy as np

from polyvec import Encoder
from polyvec.search import Index
from polyvec.search.files import list_files, read_file
from polyvec.search.index_table import TABLE
from polyvec.search.passages import split_file, texts_with_headings

MAX_PASSAGES = 4_000
"""The model embeds them many times."""

NUM_FILES = 100
SCRIPT = """
import sys
from pathlib import Path
from polyvec import Encoder
from polyvec.search import Index, updating
updating.COMMIT_SECONDS, updating.MAX_COMMIT_SHARE = 0, float("inf")
target = Index(Path(sys.argv[1]), Encoder.load())
target.update(lambda done, total: done and print(done, flush=True))
"""
"""Indexes a folder and prints a line whenever passages were embedded. Each time they are committed,
so that kills fall between many commits."""

NUM_CHECKED_VECTORS = 50
"""Passages that are embedded again at the end, to compare their vectors."""


def kill_often(folder: Path, texts: list[str], encoder: Encoder, kills: int, rate: float) -> str:
    """Kill an indexing process `kills` times, and return a sentence about the result.

    The first `MAX_PASSAGES` of `texts` are written to `folder`, which is created. There must be at
    least `NUM_FILES` texts. `rate` is the approximate number of passages indexed per second.

    Raises ValueError if the index contains wrong passages.
    """
    folder.mkdir()
    texts = texts[:MAX_PASSAGES]
    chance = random.Random(0)
    for number in range(NUM_FILES):
        write_file(folder, texts, number, 0)
    index = Index(folder, encoder)
    # Half of the files are new each time, so a complete run takes about this many seconds.
    max_seconds = len(texts) / rate / 2
    too_late = 0
    for kill in range(1, kills + 1):
        for number in chance.sample(range(NUM_FILES), NUM_FILES // 2):
            write_file(folder, texts, number, kill)
        with run(folder) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, max_seconds))
            process.kill()
        too_late += process.returncode == 0
        check_unique(index)
        index.search(texts[0])
    with run(folder) as process:
        process.communicate()
    if process.returncode:
        raise ValueError(f"the last run ended with status {process.returncode}")
    count = check_whole(index)
    return (
        f"An indexing process was killed {kills} times ({too_late} times it had already finished). "
        f"The index opened each time. After a complete run it contained {count:,} passages; none "
        "was lost or duplicated, and the vectors of a sample were right."
    )


def write_file(folder: Path, texts: list[str], number: int, version: int) -> None:
    """Write file `number` with its texts in this version. Odd versions leave out some texts."""
    own = texts[number :: NUM_FILES + version % 2]
    versions = [f"{text} ({version})" for text in own]
    (folder / f"{number:03}.txt").write_text("\n\n".join(versions), encoding="utf-8")


def run(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that runs `SCRIPT` on the folder."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def read_rows(index: Index) -> list[dict]:
    """Return all rows of the index."""
    table = lancedb.connect(index.directory).open_table(TABLE)
    return table.search().limit(None).to_arrow().to_pylist()


def check_unique(index: Index) -> None:
    """Raise ValueError if the index contains a passage twice, or two versions of a file."""
    rows = read_rows(index)
    if len({(row["path"], row["start"]) for row in rows}) < len(rows):
        raise ValueError("the index contains a passage twice")
    if len({(row["path"], row["digest"]) for row in rows}) > len({row["path"] for row in rows}):
        raise ValueError("the index contains two versions of a file")


def check_whole(index: Index) -> int:
    """Return the number of passages. Raises ValueError if they are not those of the files."""
    check_unique(index)
    rows = read_rows(index)
    expected = set()
    for path in list_files(index.folder):
        split = split_file(index.folder, read_file(index.folder, path), index.encoder.tokenizer)
        for passage, (text, _) in zip(split.passages, texts_with_headings(split), strict=True):
            expected.add((path, passage.start, text))
    indexed = {(row["path"], row["start"], row["text"]) for row in rows}
    if indexed != expected:
        lost, extra = len(expected - indexed), len(indexed - expected)
        raise ValueError(f"{lost} passages are missing and {extra} are wrong")
    sample = random.Random(1).sample(rows, NUM_CHECKED_VECTORS)
    again = index.encoder.encode(
        [row["text"] for row in sample], task="retrieval.passage", progress=False
    )
    stored = np.array([row["vector"] for row in sample], np.float32)
    if (again * stored).sum(1).min() < 0.99:
        raise ValueError("a passage has the vector of another text")
    return len(rows)
