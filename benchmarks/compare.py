"""Compare the speed of two checkouts: embedding, search, the server, and start-up.

    python -m benchmarks.compare OTHER_CHECKOUT --pairs 15

Both checkouts run in the same Python environment, and in turn: A B, B A, A B and so on, so that a
drift of the machine's speed touches both. Each job keeps one process per checkout; only the job is
timed. The table gives the median ratio of seconds, this checkout over the other, with a 95 %
bootstrap interval over the pairs. A ratio below 1 means that this checkout is faster.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tyro

from benchmarks.load import free_port, make_texts, running
from benchmarks.report import describe_machine, table

HERE = Path(__file__).parent.parent

NUM_TEXTS = 600
"""Texts that one run of the embedding job encodes."""

NUM_QUESTIONS = 40
"""Questions that one run of the search job answers."""

NUM_REQUESTS, NUM_CLIENTS, TEXTS_PER_REQUEST = 120, 8, 4
"""Requests of one run of the server job, over how many connections, and texts in each."""

RESAMPLES = 10_000

JOB = """
import json, sys, time
texts, folder = json.loads(sys.stdin.readline())
from polyvec import Encoder
encoder = Encoder.load(device="cpu")
if sys.argv[1] == "search":
    from pathlib import Path
    from polyvec.search import Index
    index = Index(Path(folder), encoder)
    index.update()
    run = lambda: [index.search(text) for text in texts]
else:
    run = lambda: encoder.encode(texts, task="retrieval.passage", progress=False)
run()
for line in sys.stdin:
    start = time.perf_counter()
    run()
    print(time.perf_counter() - start, flush=True)
"""


def main(other: tyro.conf.Positional[Path], pairs: int = 15, jobs: tuple[str, ...] = ()) -> None:
    """Time every job, or those that `jobs` names, in both checkouts, and print the table."""
    chosen = {name: JOBS[name] for name in jobs or JOBS}
    rows = []
    for name, start in chosen.items():
        with start(HERE) as ours, start(other) as theirs:
            ratios = time_pairs(ours, theirs, pairs)
        low, high = bootstrap_median(ratios)
        verdict = "no slower" if low <= 1 else "slower"
        rows.append([name, f"{np.median(ratios):.3f}", f"{low:.3f} to {high:.3f}", verdict])
        sys.stderr.write(f"{' '.join(rows[-1])}\n")
    header = ["job", "ratio of seconds", "95 % interval", ""]
    body = [table(header, rows), f"{pairs} pairs. {describe_machine('openvino', 'tokenizers')}"]
    sys.stdout.write("\n\n".join(body) + "\n")


def time_pairs(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> list[float]:
    """The ratio of seconds of each pair of runs; the order within a pair alternates."""
    ratios = []
    for number in range(pairs):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        seconds = {run: run() for run in order}
        ratios.append(seconds[ours] / seconds[theirs])
    return ratios


def bootstrap_median(ratios: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median over resampled pairs."""
    rng = np.random.default_rng(0)
    samples = rng.choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(low), float(high)


def environment(checkout: Path) -> dict[str, str]:
    """The environment in which `import polyvec` finds this checkout."""
    return {
        **os.environ,
        "PYTHONPATH": str((checkout / "src").resolve()),
        "LANCEDB_LOG": "error",
    }


@contextlib.contextmanager
def run_worker(checkout: Path, job: str, texts: list[str]) -> Iterator[Callable[[], float]]:
    """A process that repeats a job whenever the yielded function is called."""
    with tempfile.TemporaryDirectory() as folder:
        write_texts(Path(folder))
        worker = subprocess.Popen(
            [sys.executable, "-c", JOB, job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(checkout),
            text=True,
        )
        assert worker.stdin is not None and worker.stdout is not None
        stdin, stdout = worker.stdin, worker.stdout
        stdin.write(json.dumps([texts, folder]) + "\n")

        def run() -> float:
            stdin.write("again\n")
            stdin.flush()
            return float(stdout.readline())

        run()
        try:
            yield run
        finally:
            stdin.close()
            worker.wait()


def write_texts(folder: Path) -> None:
    """Twenty files of sentences, which the search job indexes."""
    texts = make_texts(2_000)
    for number in range(20):
        lines = "\n\n".join(texts[number::20])
        (folder / f"{number:02}.txt").write_text(lines, encoding="utf-8")


def embed_job(checkout: Path) -> contextlib.AbstractContextManager[Callable[[], float]]:
    """Encode texts with the bundled model."""
    return run_worker(checkout, "embed", make_texts(NUM_TEXTS))


def search_job(checkout: Path) -> contextlib.AbstractContextManager[Callable[[], float]]:
    """Answer questions from an index."""
    return run_worker(checkout, "search", make_texts(NUM_QUESTIONS))


@contextlib.contextmanager
def server_job(checkout: Path) -> Iterator[Callable[[], float]]:
    """Answer requests of several clients at once over HTTP."""
    port = free_port()
    command = [sys.executable, "-m", "polyvec", "serve", "--port", str(port)]
    texts = make_texts(NUM_REQUESTS * TEXTS_PER_REQUEST)
    bodies = [
        json.dumps({"model": "polyvec-mini", "input": texts[first : first + TEXTS_PER_REQUEST]})
        for first in range(0, len(texts), TEXTS_PER_REQUEST)
    ]

    def post(body: str) -> int:
        url = f"http://127.0.0.1:{port}/v1/embeddings"
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(url, body.encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return len(answer.read())

    def run() -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            assert all(pool.map(post, bodies))
        return time.perf_counter() - start

    # `running` starts its command with this process's environment.
    saved = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = environment(checkout)["PYTHONPATH"]
    try:
        with running(command, port):
            run()
            yield run
    finally:
        os.environ.pop("PYTHONPATH")
        if saved is not None:
            os.environ["PYTHONPATH"] = saved


@contextlib.contextmanager
def startup_job(checkout: Path) -> Iterator[Callable[[], float]]:
    """Start the command line and embed one text."""

    def run() -> float:
        start = time.perf_counter()
        command = [sys.executable, "-m", "polyvec", "embed", "A text."]
        subprocess.run(command, stdout=subprocess.DEVNULL, env=environment(checkout), check=True)
        return time.perf_counter() - start

    run()
    yield run


JOBS = {"embed": embed_job, "search": search_job, "server": server_job, "start-up": startup_job}


if __name__ == "__main__":
    tyro.cli(main)
