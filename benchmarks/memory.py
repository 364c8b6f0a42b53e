"""Memory of the server and its engine over 100,000 requests of mixed length, without faults.

`python -m benchmarks.memory`; with `--write` it puts its section and its plot into docs/. Linux
only. It exits with 1 if memory still grows in the second half. Lengths are log-normal, as those
of real texts, up to 500 words, so most batches have a shape new to the engine, and OpenVINO
keeps a kernel for each, up to a bound. One engine answers all: benchmarks/soak.py kills them.
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
from benchmarks.report import describe_machine, table, write_section
from benchmarks.soak import DOCS

NUM_CLIENTS, WORDS, MOST_WORDS = 32, 12, 500
GROWTH = 1.05
"""How much larger memory may be in the last quarter than in the second."""


def main(requests: int = 100_000, write: bool = False) -> None:
    """Send so many requests, one text each."""
    port = free_port()
    with running(serve_command(port), port) as server:
        began = time.perf_counter()
        memory = asyncio.run(ask_all(port, server.pid, requests))
        seconds = time.perf_counter() - began
    plot = "serving-memory.svg"
    draw(memory, DOCS / plot if write else Path("build") / plot)
    tenths = np.array_split(memory, 10)
    rows = [
        [f"{part[-1, 0]:,.0f}", *(f"{megabytes:.0f}" for megabytes in np.median(part[:, 1:], 0))]
        for part in tenths
    ]
    body = "\n\n".join(
        [
            table(["requests", "server, MB", "engine, MB"], rows),
            f"![resident memory over requests]({plot})",
            f"{requests:,} requests in {seconds / 60:.0f} minutes, every answer 200. "
            f"{describe_machine('openvino', 'uvicorn')} `python -m benchmarks.memory`",
        ]
    )
    sys.stdout.write(body + "\n")
    if write:
        write_section("memory", body, DOCS / "serving.md")
    quarters = np.array_split(memory[:, 1:], 4)
    growth = np.median(quarters[3], 0) / np.median(quarters[1], 0)
    if growth.max() > GROWTH:
        sys.exit(f"memory grew by {growth[0]:.2f} (server) and {growth[1]:.2f} (engine)")


async def ask_all(port: int, pid: int, requests: int) -> np.ndarray:
    """Rows of (requests answered, MB of the server, MB of its engine), a thousand at most."""
    left, answered, memory = iter(range(requests)), 0, []
    engine = max(children(pid), key=resident)
    every = -(-requests // 1_000)

    async def client(seed: int) -> None:
        nonlocal answered
        connection, choose = Connection(port), random.Random(seed)
        for number in left:
            words = min(MOST_WORDS, max(1, round(choose.lognormvariate(np.log(WORDS), 1))))
            text = " ".join([f"{number}", *("fox" for _ in range(words))])
            request = make_request(PATH, {"model": "polyvec-mini", "input": text})
            status, body = await connection.ask(request)
            if status != 200:
                raise RuntimeError(f"{status}: {body[:200]!r}")
            answered += 1
            if answered % every == 0:
                memory.append((answered, resident(pid), resident(engine)))
        connection.close()

    await asyncio.gather(*map(client, range(NUM_CLIENTS)))
    return np.array(memory)


def draw(memory: np.ndarray, path: Path) -> None:
    """Memory over requests."""
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
