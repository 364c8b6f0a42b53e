"""An indexing process is killed again and again, at moments drawn by chance.

1. Some files are written anew, so that there is always something to do.
2. A process indexes the folder; after its first file and a random time more, it gets SIGKILL.
3. The index must open, answer, and hold no passage twice.
4. In the end one process is let finish: the index holds the passages of the files as they are, each
   once, with its vector.
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
from polyvec.search.index import TABLE
from polyvec.search.passages import split_file, texts_with_headings

PASSAGES = 4_000
"""At most; the model reads them again and again."""

FILES = 100
SCRIPT = """
import sys
from pathlib import Path
from polyvec import Encoder
from polyvec.search import Index, index
index.COMMIT_PASSAGES = 32
target = Index(Path(sys.argv[1]), Encoder.load())
target.update(lambda path: print(path, flush=True))
"""
"""Commits are small, so that a kill falls between many."""

SAMPLE = 50
"""Passages of which the vector is made again in the end."""


def kill_often(folder: Path, texts: list[str], encoder: Encoder, kills: int, rate: float) -> str:
    """What came of it, as a sentence; `rate` is about how many passages are indexed a second.

    Of `texts`, `FILES` at least, the first `PASSAGES` are indexed in `folder`, which is made.

    Raises ValueError if the index does not open, or holds other passages than it should.
    """
    folder.mkdir()
    texts = texts[:PASSAGES]
    chance = random.Random(0)
    for number in range(FILES):
        write_file(folder, texts, number, 0)
    index = Index(folder, encoder)
    # Half of the files are new each time, so this is about what a run that is not killed takes.
    longest = len(texts) / rate / 2
    late = 0
    for kill in range(1, kills + 1):
        for number in chance.sample(range(FILES), FILES // 2):
            write_file(folder, texts, number, kill)
        with run(folder) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, longest))
            process.kill()
        late += process.returncode == 0
        check_unique(index)
        index.search(texts[0])
    with run(folder) as process:
        process.communicate()
    if process.returncode:
        raise ValueError(f"the last run ended with status {process.returncode}")
    count = check_whole(index)
    return (
        f"An indexing process was killed {kills} times, {late} of them too late. The index opened "
        f"after each; a last run left {count:,} passages, none twice, none lost, the vectors of a "
        "sample right."
    )


def write_file(folder: Path, texts: list[str], number: int, version: int) -> None:
    """File `number`, its texts told in this version, some of them left out in odd ones."""
    own = texts[number :: FILES + version % 2]
    told = [f"{text} ({version})" for text in own]
    (folder / f"{number:03}.txt").write_text("\n\n".join(told), encoding="utf-8")


def run(folder: Path) -> subprocess.Popen[bytes]:
    """A process that indexes the folder and prints each path when it has read it."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def read_rows(index: Index) -> list[dict]:
    """All that the index has."""
    table = lancedb.connect(index.directory).open_table(TABLE)
    return table.search().limit(None).to_arrow().to_pylist()


def check_unique(index: Index) -> None:
    """Raise ValueError if a passage is there twice, or a file in two versions."""
    rows = read_rows(index)
    if len({(row["path"], row["start"]) for row in rows}) < len(rows):
        raise ValueError("a passage is in the index twice")
    if len({(row["path"], row["digest"]) for row in rows}) > len({row["path"] for row in rows}):
        raise ValueError("a file is in the index in two versions")


def check_whole(index: Index) -> int:
    """The number of passages; raises ValueError if they are not those of the files."""
    check_unique(index)
    rows = read_rows(index)
    expected = set()
    for path in list_files(index.folder):
        split = split_file(index.folder, read_file(index.folder, path), index.encoder.tokenizer)
        for passage, (text, _) in zip(split.passages, texts_with_headings(split), strict=True):
            expected.add((path, passage.start, text))
    found = {(row["path"], row["start"], row["text"]) for row in rows}
    if found != expected:
        raise ValueError(f"{len(expected - found)} passages lost, {len(found - expected)} too many")
    some = random.Random(1).sample(rows, SAMPLE)
    again = index.encoder.encode(
        [row["text"] for row in some], task="retrieval.passage", progress=False
    )
    kept = np.array([row["vector"] for row in some], np.float32)
    if (again * kept).sum(1).min() < 0.99:
        raise ValueError("a passage has another's vector")
    return len(rows)
