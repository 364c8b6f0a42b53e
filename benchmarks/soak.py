"""Mixed load with faults: no answer may be wrong or lost, and memory may not grow.

`python -m benchmarks.soak --minutes 30` runs on Linux only. With `--write` it writes its table to
docs/serving.md and its plot to results/. It exits with 1 if there was a failure.

1. Clients send requests of one to eight texts with random tasks and dims, and compare every vector
   with the library's. Another client sends 500 texts per request.
2. Meanwhile faults are injected in turn: the engine is killed, hangs, returns NaN, fails or has no
   memory; clients disconnect; request bodies are too large or not JSON.
3. A valid request may be answered with 503 while an engine restarts, and is then sent again. Any
   other status, a closed connection, a wrong vector, or growing memory is a failure.
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
from tests.server.faults import DEATH, ERROR, HANG, MEMORY, NAN, faulty_engine, frame

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
from benchmarks.report import RESULTS, ROOT, describe_run, write_section
from polyvec import Encoder
from polyvec.server.limits import Limits
from polyvec.server.run import make_server, make_service

MODEL = "polyvec-mini"
NUM_CLIENTS = 8
NUM_TEXTS = 512
LARGE_REQUEST_TEXTS = 500
FAULT_INTERVAL_SECONDS = 2.5
QUIET_SECONDS = 10
"""No faults are injected at the end, so that every request can be answered."""

ANSWER_SECONDS = 60
RETRY_SECONDS = 0.2

TOLERANCE = 1e-4
"""Largest difference of a number in a vector, because batches round differently. The vectors of two
texts differ by about 0.1."""

MAX_GROWTH = 1.05
"""Largest accepted ratio of the server's memory in the last quarter to that in the second."""


@dataclass(slots=True)
class Record:
    """The events of a run so far."""

    statuses: Counter[int] = field(default_factory=Counter)
    """Statuses of valid requests."""
    faults: Counter[str] = field(default_factory=Counter)
    num_vectors: int = 0
    worst: float = 0.0
    failures: list[str] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """Time of each answer, and seconds from request to answer."""
    memory: list[tuple[float, float, float]] = field(default_factory=list)
    """Time, resident MB of the server, and resident MB of its engine."""


def main(minutes: float = 30.0, write: bool = False, serve: int | None = None) -> None:
    """Run for `minutes`. The benchmark itself starts a process with `serve`, which is a port."""
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
    record = Record()
    with running(command, port) as server:
        asyncio.run(soak(port, server.pid, minutes * 60, texts, expected, dims, record))
    check_memory(record)
    plot = "serving-soak.svg"
    body = describe(record, minutes, plot)
    sys.stdout.write(body + "\n")
    plot_record(record, RESULTS / plot if write else Path("build") / plot)
    if write:
        write_section("soak", body, ROOT / "docs" / "serving.md")
    if record.failures:
        sys.exit("\n".join(record.failures[:20]))


def run_server(port: int) -> None:
    """Run a server whose engine has the faults that tests/server/faults.py describes."""
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
    record: Record,
) -> None:
    """Run the clients and inject faults for `seconds`."""
    began = time.perf_counter()
    end = began + seconds

    async def client(seed: int) -> None:
        connection, rng = Connection(port), random.Random(seed)
        while time.perf_counter() < end:
            size = LARGE_REQUEST_TEXTS if seed == 0 else rng.randint(1, 8)
            rows = rng.sample(range(len(texts)), size)
            task, dim = rng.choice(list(expected)), rng.choice(dims)
            body = {"model": MODEL, "input": [texts[i] for i in rows]}
            request = make_request(PATH, body | {"task": task, "dimensions": dim})
            sent = time.perf_counter()
            answer = await ask_until_answered(connection, request, record)
            if answer is not None:
                if seed:
                    now = time.perf_counter()
                    record.latencies.append((now - began, now - sent))
                await asyncio.to_thread(compare, answer, expected[task][rows], dim, record)
        connection.close()

    async def watch() -> None:
        while time.perf_counter() < end:
            now = time.perf_counter() - began
            engine = max(map(resident, children(pid)), default=0)
            record.memory.append((now, resident(pid), engine))
            await asyncio.sleep(1)

    faults = inject_faults(port, pid, end, record)
    await asyncio.gather(watch(), faults, *(client(seed) for seed in range(NUM_CLIENTS + 1)))


async def ask_until_answered(
    connection: Connection, request: bytes, record: Record
) -> bytes | None:
    """Send a request again while the status is 503, and return the body of the answer.

    Returns None, and records the failure, if there is no answer or an answer of another status.
    """
    while True:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, body = await connection.ask(request)
        except (ConnectionError, TimeoutError) as error:
            record.failures.append(f"lost: {error!r}")
            connection.close()
            return None
        record.statuses[status] += 1
        if status == 200:
            return body
        if status != 503:
            record.failures.append(f"{status}: {body[:200]!r}")
            return None
        await asyncio.sleep(RETRY_SECONDS)


def compare(answer: bytes, full: np.ndarray, dim: int, record: Record) -> None:
    """Record a failure unless an answer has the library's vectors, in their order."""
    data = orjson.loads(answer)["data"]
    got = np.array([row["embedding"] for row in data], np.float32)
    want = full[:, :dim] / np.linalg.norm(full[:, :dim], axis=1, keepdims=True)
    if got.shape != want.shape or [row["index"] for row in data] != list(range(len(want))):
        record.failures.append(f"vectors of shape {got.shape} instead of {want.shape}")
        return
    worst = float(np.abs(got - want).max())
    record.num_vectors += len(want)
    record.worst = max(record.worst, worst)
    if worst > TOLERANCE:
        record.failures.append(f"a vector is wrong by {worst:.2g}")


async def inject_faults(port: int, pid: int, end: float, record: Record) -> None:
    """Inject one fault after another, and check the status of each answer."""
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
        await asyncio.sleep(FAULT_INTERVAL_SECONDS)
        if time.perf_counter() > end - QUIET_SECONDS:
            break
        record.faults[kind] += 1
        if kind == "kill":
            kill_engine(pid)
        elif kind == "disconnect":
            await disconnect(port)
        elif kind == "memory":
            ids = frame([MEMORY, 5 + number] for number in range(8))
            await expect(connection, {"model": MODEL, "input": ids}, {200, 503}, kind, record)
        elif kind in by_token:
            token, status = by_token[kind]
            body = {"model": MODEL, "input": frame([[5, 6], [token, 7]])}
            await expect(connection, body, {status, 503}, kind, record)
        else:
            content, status = bodies[kind]
            await expect(connection, content, {status}, kind, record)
    connection.close()


async def expect(
    connection: Connection, body: object, statuses: set[int], kind: str, record: Record
) -> None:
    """Send an invalid request, and record a failure unless its status is one of `statuses`."""
    request = make_request(PATH, body)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            status, _ = await connection.ask(request)
    except (ConnectionError, TimeoutError) as error:
        record.failures.append(f"{kind}: lost: {error!r}")
        connection.close()
        return
    if status not in statuses:
        record.failures.append(f"{kind}: answered {status}")


async def disconnect(port: int) -> None:
    """Send requests from ten clients that do not wait for an answer."""
    for number in range(10):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(make_request(PATH, {"model": MODEL, "input": f"gone {number} " * 50}))
        await asyncio.sleep(0.01)
        writer.close()


def kill_engine(pid: int) -> None:
    """Kill the engine process of the server, if there is one at the moment."""
    engine = max(children(pid), key=resident, default=None)
    if engine is not None:
        os.kill(engine, signal.SIGKILL)


def check_memory(record: Record) -> None:
    """Record a failure if the memory of the server grew."""
    server = np.array([megabytes for _, megabytes, _ in record.memory])
    quarter = len(server) // 4
    early, late = np.median(server[quarter : 2 * quarter]), np.median(server[-quarter:])
    if late > MAX_GROWTH * early:
        record.failures.append(f"memory grew from {early:.0f} to {late:.0f} MB")


def describe(record: Record, minutes: float, plot: str) -> str:
    """Return the table of docs/serving.md."""
    latencies = 1e3 * np.array([seconds for _, seconds in record.latencies])
    server = np.array([megabytes for _, megabytes, _ in record.memory])
    half = len(server) // 2
    answered, repeated = record.statuses[200], record.statuses[503]
    rows = [
        ["requests answered with vectors", f"{answered:,}"],
        ["vectors compared with the library's", f"{record.num_vectors:,}"],
        ["largest difference of a number", f"{record.worst:.1e}"],
        ["requests answered with 503 during a restart, and sent again", f"{repeated:,}"],
        ["faults injected", ", ".join(f"{n} {kind}" for kind, n in sorted(record.faults.items()))],
        ["wrong, lost or mixed answers, and wrong statuses", f"{len(record.failures):,}"],
        [
            "latency, p50 and p99",
            " and ".join(f"{p:,.0f} ms" for p in np.percentile(latencies, (50, 99))),
        ],
        [
            "memory of the server, median of the first and of the second half",
            f"{np.median(server[:half]):.0f} and {np.median(server[half:]):.0f} MB",
        ],
    ]
    return describe_run("soak", minutes, rows, plot, "memory and latency over time")


def plot_record(record: Record, path: Path) -> None:
    """Plot memory and latency over time."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.5), layout="constrained")
    minutes, server, engine = np.array(record.memory).T
    above.plot(minutes / 60, server, label="server")
    above.plot(minutes / 60, engine, label="engine", lw=0.8)
    above.set(ylabel="resident MB", ylim=(0, None))
    above.legend(loc="lower right")
    when, took = np.array(record.latencies).T
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
