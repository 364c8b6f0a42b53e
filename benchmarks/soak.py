"""Mixed load with faults, as long as one likes: no answer wrong or lost, no memory that grows.

`python -m benchmarks.soak --minutes 30`; with `--write` it puts its section and its plot into
docs/. Linux only. It exits with 1 if anything went wrong.

1. Clients send requests of one to eight texts with random tasks and dims, one after another, and
   compare every vector with the library's. Another one sends 500 texts at a time.
2. Meanwhile faults happen in turn: the engine is killed, hangs, gives NaN, fails or has no memory;
   clients go away; bodies are too large, broken or of the wrong form.
3. A request of the first kind may be answered with 503 while an engine starts again, and is sent
   once more. Any other status, a connection that closes, a wrong vector, or memory that grows is
   a failure.
"""

import asyncio
import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import tyro
from tests.server.faults import DEATH, ERROR, HANG, MEMORY, NAN, faulty_engine

from benchmarks.load import (
    PATH,
    Connection,
    children,
    free_port,
    make_request,
    make_texts,
    resident,
    running,
)
from benchmarks.report import describe_machine, table, write_section
from polyvec import Encoder
from polyvec.server.limits import Limits
from polyvec.server.run import make_server, make_service

DOCS = Path(__file__).parent.parent / "docs"
MODEL = "polyvec-mini"
NUM_CLIENTS, NUM_TEXTS, NUM_MANY = 8, 512, 500
FAULT_SECONDS = 2.5
TOLERANCE = 1e-4
"""In a vector's numbers: another batch rounds otherwise. Another text's differ by 0.1."""
GROWTH = 1.05
"""How much larger the server's memory may be in the last quarter than in the second."""


@dataclass(slots=True)
class Seen:
    """What happened so far."""

    statuses: Counter[int] = field(default_factory=Counter)
    """Of the requests that are right."""
    faults: Counter[str] = field(default_factory=Counter)
    num_vectors: int = 0
    worst: float = 0.0
    failures: list[str] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """When a request was answered, and how long it took, in seconds."""
    memory: list[tuple[float, float, float]] = field(default_factory=list)
    """When, and the resident MB of the server and of its engine."""


def main(minutes: float = 30.0, write: bool = False, serve: int | None = None) -> None:
    """Run for so many minutes. `serve` is for the process that it starts itself."""
    if serve is not None:
        run_server(serve)
        return
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.soak", "--serve", str(port)]
    encoder = Encoder.load(precision="float32", device="cpu")
    texts = make_texts(NUM_TEXTS)
    tasks = [None, *(task.name for task in encoder.config.tasks)]
    expected = {task: encoder.encode(texts, task=task, progress=False) for task in tasks}
    dims = encoder.config.dims
    del encoder
    seen = Seen()
    with running(command, port) as server:
        asyncio.run(soak(port, server.pid, minutes * 60, texts, expected, dims, seen))
    check_memory(seen)
    plot = "serving-soak.svg"
    body = describe(seen, minutes, plot)
    sys.stdout.write(body + "\n")
    draw(seen, DOCS / plot if write else Path("build") / plot)
    if write:
        write_section("soak", body, DOCS / "serving.md")
    if seen.failures:
        sys.exit("\n".join(seen.failures[:20]))


def run_server(port: int) -> None:
    """The server, whose engine has the faults that tests/server/faults.py describes."""
    limits = Limits(engine_seconds=5.0, body_bytes=1_000_000)
    service = make_service(["mini"], make_engine=faulty_engine, limits=limits)
    make_server(service, "127.0.0.1", port).run()


async def soak(
    port: int,
    pid: int,
    seconds: float,
    texts: list[str],
    expected: dict[str | None, np.ndarray],
    dims: tuple[int, ...],
    seen: Seen,
) -> None:
    """Load and faults at once, until the time is up."""
    began = time.perf_counter()
    end = began + seconds

    async def client(seed: int) -> None:
        connection, choose = Connection(port), random.Random(seed)
        while time.perf_counter() < end:
            size = NUM_MANY if seed == 0 else choose.randint(1, 8)
            rows = choose.sample(range(len(texts)), size)
            task, dim = choose.choice(list(expected)), choose.choice(dims)
            body = {"model": MODEL, "input": [texts[i] for i in rows]}
            request = make_request(PATH, body | {"task": task, "dimensions": dim})
            asked = time.perf_counter()
            answer = await ask_until_answered(connection, request, seen)
            if answer is not None:
                if seed:
                    now = time.perf_counter()
                    seen.latencies.append((now - began, now - asked))
                await asyncio.to_thread(compare, answer, expected[task][rows], dim, seen)
        connection.close()

    async def watch() -> None:
        while time.perf_counter() < end:
            now = time.perf_counter() - began
            engine = max(map(resident, children(pid)), default=0)
            seen.memory.append((now, resident(pid), engine))
            await asyncio.sleep(1)

    faults = make_faults(port, pid, end, seen)
    await asyncio.gather(watch(), faults, *(client(seed) for seed in range(NUM_CLIENTS + 1)))


async def ask_until_answered(connection: Connection, request: bytes, seen: Seen) -> bytes | None:
    """The body of a 200, however often an engine dies meanwhile; None, and noted, if it fails."""
    while True:
        try:
            async with asyncio.timeout(60):
                status, body = await connection.ask(request)
        except (ConnectionError, TimeoutError) as error:
            seen.failures.append(f"lost: {error!r}")
            connection.close()
            return None
        seen.statuses[status] += 1
        if status == 200:
            return body
        if status != 503:
            seen.failures.append(f"{status}: {body[:200]!r}")
            return None
        await asyncio.sleep(0.2)


def compare(answer: bytes, full: np.ndarray, dim: int, seen: Seen) -> None:
    """Note an answer that is not the library's vectors in their order."""
    data = orjson.loads(answer)["data"]
    got = np.array([row["embedding"] for row in data], np.float32)
    want = full[:, :dim] / np.linalg.norm(full[:, :dim], axis=1, keepdims=True)
    if got.shape != want.shape or [row["index"] for row in data] != list(range(len(want))):
        seen.failures.append(f"vectors of shape {got.shape} instead of {want.shape}")
        return
    worst = float(np.abs(got - want).max())
    seen.num_vectors += len(want)
    seen.worst = max(seen.worst, worst)
    if worst > TOLERANCE:
        seen.failures.append(f"a vector is wrong by {worst:.2g}")


async def make_faults(port: int, pid: int, end: float, seen: Seen) -> None:
    """One fault after another, each with the status that is right for it."""
    by_token = {
        "NaN": (NAN, 500),
        "error": (ERROR, 500),
        "death": (DEATH, 503),
        "hang": (HANG, 503),
    }
    bodies = {"oversized": (b'"' + b"x" * 1_100_000 + b'"', 413), "broken": (b'{"input": [', 400)}
    connection = Connection(port)
    kinds = ("disconnect", "NaN", "oversized", "error", "memory", "disconnect", "broken", "kill")
    rare = itertools.cycle(("death", "hang", "kill"))
    for kind in itertools.chain.from_iterable([*kinds, next(rare)] for _ in itertools.count()):
        await asyncio.sleep(FAULT_SECONDS)
        if time.perf_counter() > end - 10:
            break
        seen.faults[kind] += 1
        if kind == "kill":
            kill_engine(pid)
        elif kind == "disconnect":
            await leave(port)
        elif kind == "memory":
            ids = [[MEMORY, 5 + number] for number in range(8)]
            await expect(connection, {"model": MODEL, "input": ids}, {200, 503}, kind, seen)
        elif kind in by_token:
            token, status = by_token[kind]
            body = {"model": MODEL, "input": [[5, 6], [token, 7]]}
            await expect(connection, body, {status, 503}, kind, seen)
        else:
            content, status = bodies[kind]
            await expect(connection, content, {status}, kind, seen)
    connection.close()


async def expect(
    connection: Connection, body: object, statuses: set[int], kind: str, seen: Seen
) -> None:
    """Send a request that is wrong; note an answer that is not one of these."""
    request = make_request(PATH, body)
    try:
        async with asyncio.timeout(60):
            status, _ = await connection.ask(request)
    except (ConnectionError, TimeoutError) as error:
        seen.failures.append(f"{kind}: lost: {error!r}")
        connection.close()
        return
    if status not in statuses:
        seen.failures.append(f"{kind}: answered {status}")


async def leave(port: int) -> None:
    """Ten clients that ask and do not wait for an answer."""
    for number in range(10):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(make_request(PATH, {"model": MODEL, "input": f"gone {number} " * 50}))
        await asyncio.sleep(0.01)
        writer.close()


def kill_engine(pid: int) -> None:
    """End the server's engine process; there may be none at the moment."""
    engine = max(children(pid), key=resident, default=None)
    if engine is not None:
        os.kill(engine, signal.SIGKILL)


def check_memory(seen: Seen) -> None:
    """Note it if the server's memory grew."""
    server = np.array([megabytes for _, megabytes, _ in seen.memory])
    quarter = len(server) // 4
    early, late = np.median(server[quarter : 2 * quarter]), np.median(server[-quarter:])
    if late > GROWTH * early:
        seen.failures.append(f"memory grew from {early:.0f} to {late:.0f} MB")


def describe(seen: Seen, minutes: float, plot: str) -> str:
    """What docs/serving.md says of the run."""
    latencies = 1e3 * np.array([seconds for _, seconds in seen.latencies])
    server = np.array([megabytes for _, megabytes, _ in seen.memory])
    half = len(server) // 2
    good, refused = seen.statuses[200], seen.statuses[503]
    rows = [
        ["requests answered with vectors", f"{good:,}"],
        ["vectors compared with the library's", f"{seen.num_vectors:,}"],
        ["largest difference of a number", f"{seen.worst:.1e}"],
        ["answered 503 while an engine started again, and asked once more", f"{refused:,}"],
        ["faults made", ", ".join(f"{n} {kind}" for kind, n in sorted(seen.faults.items()))],
        ["wrong, lost or mixed answers, wrong statuses", f"{len(seen.failures):,}"],
        [
            "latency p50, p99",
            " and ".join(f"{p:,.0f} ms" for p in np.percentile(latencies, (50, 99))),
        ],
        [
            "server's memory, median of the first and of the second half",
            f"{np.median(server[:half]):.0f} and {np.median(server[half:]):.0f} MB",
        ],
    ]
    return "\n\n".join(
        [
            table([f"{minutes:g} minutes", ""], rows),
            f"![memory and latency over time]({plot})",
            f"{describe_machine('openvino', 'uvicorn')} "
            f"`python -m benchmarks.soak --minutes {minutes:g}`",
        ]
    )


def draw(seen: Seen, path: Path) -> None:
    """Memory and latency over time."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.5), layout="constrained")
    minutes, server, engine = np.array(seen.memory).T
    above.plot(minutes / 60, server, label="server")
    above.plot(minutes / 60, engine, label="engine", lw=0.8)
    above.set(ylabel="resident MB", ylim=(0, None))
    above.legend(loc="lower right")
    when, took = np.array(seen.latencies).T
    edges = np.linspace(0, when.max(), 121)
    bins = np.digitize(when, edges)
    for percent in (50, 99):
        points = [
            (edges[b - 1] / 60, 1e3 * np.percentile(took[bins == b], percent))
            for b in np.unique(bins)
        ]
        below.plot(*np.array(points).T, label=f"p{percent}", lw=1)
    below.set(xlabel="minutes", ylabel="latency, ms", yscale="log")
    below.legend(loc="upper right")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    tyro.cli(main)
