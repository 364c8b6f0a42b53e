"""Memory of the server and its engine over 100,000 requests of mixed length, without faults.

`python -m benchmarks.memory` runs on Linux only. With `--write` it writes its table to
docs/serving.md and its plot to results/. It exits with 1 if memory still grows in the second half.

The lengths of the texts are log-normal, as those of real texts, with at most 500 words. Most
batches therefore have a shape that is new to the engine, and OpenVINO caches a kernel for each
shape, up to a limit. One engine process answers all requests; benchmarks/soak.py kills engines.
"""

import asyncio
import random
import sys
import time
from pathlib import Path

import numpy as np
import tyro

from benchmarks.load import (
    PATH,
    Connection,
    children,
    free_port,
    make_request,
    resident,
    running,
    serve_command,
)
from benchmarks.report import RESULTS, ROOT, describe_machine, table, write_section

NUM_CLIENTS = 32
MEDIAN_WORDS, MAX_WORDS = 12, 500
MAX_GROWTH = 1.05
"""Largest accepted ratio of the memory in the last quarter to that in the second quarter."""

MAX_SAMPLES = 1_000
"""Measurements of memory during a run."""


def main(requests: int = 100_000, write: bool = False) -> None:
    """Send `requests` requests with one text each."""
    port = free_port()
    with running(serve_command(port), port) as server:
        began = time.perf_counter()
        memory = asyncio.run(ask_all(port, server.pid, requests))
        seconds = time.perf_counter() - began
    plot = "serving-memory.svg"
    plot_memory(memory, RESULTS / plot if write else Path("build") / plot)
    tenths = np.array_split(memory, 10)
    rows = [
        [f"{part[-1, 0]:,.0f}", *(f"{megabytes:.0f}" for megabytes in np.median(part[:, 1:], 0))]
        for part in tenths
    ]
    body = "\n\n".join(
        [
            table(["requests", "server, MB", "engine, MB"], rows),
            f"![resident memory over requests](../results/{plot})",
            f"{requests:,} requests in {seconds / 60:.0f} minutes; every status was 200. "
            f"{describe_machine('openvino', 'uvicorn')} `python -m benchmarks.memory`",
        ]
    )
    sys.stdout.write(body + "\n")
    if write:
        write_section("memory", body, ROOT / "docs" / "serving.md")
    quarters = np.array_split(memory[:, 1:], 4)
    growth = np.median(quarters[3], 0) / np.median(quarters[1], 0)
    if growth.max() > MAX_GROWTH:
        sys.exit(f"memory grew by {growth[0]:.2f} (server) and {growth[1]:.2f} (engine)")


async def ask_all(port: int, pid: int, requests: int) -> np.ndarray:
    """Return rows of (answered requests, MB of the server, MB of its engine)."""
    remaining, answered, memory = iter(range(requests)), 0, []
    engine = max(children(pid), key=resident)
    interval = -(-requests // MAX_SAMPLES)

    async def client(seed: int) -> None:
        nonlocal answered
        connection, rng = Connection(port), random.Random(seed)
        for number in remaining:
            words = min(MAX_WORDS, max(1, round(rng.lognormvariate(np.log(MEDIAN_WORDS), 1))))
            text = " ".join([f"{number}", *("fox" for _ in range(words))])
            request = make_request(PATH, {"model": "polyvec-mini", "input": text})
            status, body = await connection.ask(request)
            if status != 200:
                raise RuntimeError(f"{status}: {body[:200]!r}")
            answered += 1
            if answered % interval == 0:
                memory.append((answered, resident(pid), resident(engine)))
        connection.close()

    await asyncio.gather(*map(client, range(NUM_CLIENTS)))
    return np.array(memory)


def plot_memory(memory: np.ndarray, path: Path) -> None:
    """Plot memory over requests."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    answered, server, engine = memory.T
    axes.plot(answered, server, label="server")
    axes.plot(answered, engine, label="engine")
    axes.set(xlabel="requests answered", ylabel="resident MB", ylim=(0, None))
    axes.legend(loc="lower right")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    tyro.cli(main)
