"""A server under load, with faults of the machine and a hostile client.

`python -m benchmarks.chaos --minutes 30` runs on Linux only. Run as root, it starts the server as
the user `nobody`, whose number of processes can be limited, and its folder of batch jobs is a small
file system that can be filled. With `--write` it writes its table to docs/serving.md and its plot
to results/. It exits with 1 if there was a failure.

1. It measures the capacity of the server with the same clients, and then sends 80 % of it: requests
   of one word, of eight texts, to rerank and to classify, with random tasks and dims, and batch
   jobs. Every vector is compared with the library's.
2. A hostile client sends the most expensive requests that are known, one after another. The server
   has two engines, as one that must answer short requests beside long ones should.
3. Faults are injected in turn: engines are killed and stopped, no file descriptor or process can be
   had for some seconds, the disk is full, files of a finished job are damaged, texts end their
   engine, clients read or send nothing.
4. The first half runs without API keys, the second half with them.

A valid request may be answered with 429 or 503. These are failures: any other status, a request
without a status, a wrong vector, a line of a batch job that is lost or answered twice, growing
memory, and an event loop that is silent for half a second.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import tyro
from tests.server.faults import DEATH, faulty_engine

from benchmarks.load import PATH, Connection, children, free_port, make_texts, resident
from benchmarks.report import RESULTS, ROOT, describe_run, write_section
from polyvec import Encoder
from polyvec.server.api_keys import ApiKeys, hash_keys
from polyvec.server.limits import Limits
from polyvec.server.run import make_server, make_service
from polyvec.server.service import Service

MODEL = "polyvec-mini"
NUM_TEXTS = 256
NUM_CLIENTS = 16
NUM_ENGINES = 2
LOAD = 0.8
"""Share of the capacity that the clients send."""

CAPACITY_SECONDS = 20
BEAT_SECONDS = 0.01
FAULT_INTERVAL_SECONDS = 8
FAULT_SECONDS = 4
HOSTILE_PAUSE_SECONDS = 0.5
QUIET_SECONDS = 45
"""No faults are injected at the end, so that requests and jobs can be answered."""

ANSWER_SECONDS = 60
ENGINE_MEGABYTES = 100
"""An engine's process has more resident memory once it has loaded its model."""

JOB_SECONDS = 180
"""Time for the last jobs after all other requests: they run while nothing else waits."""

JOB_LINES = 40
JOB_INTERVAL_SECONDS = 10
DISK_BYTES = 16_000_000
TOLERANCE = 1e-4
MAX_GROWTH = 1.1
MAX_BEAT_SECONDS = 0.5
MAX_BEAT_P999_SECONDS = 0.1
MAX_WORD_P99_SECONDS = 0.2
SHARED_KEY = "the key of the clients"


@dataclass(slots=True)
class Record:
    """The events of a run so far."""

    began: float = field(default_factory=time.perf_counter)
    statuses: Counter[int] = field(default_factory=Counter)
    """Statuses of valid requests."""
    hostile: Counter[str] = field(default_factory=Counter)
    """Kinds of hostile requests with the statuses of their answers."""
    faults: list[tuple[float, str]] = field(default_factory=list)
    num_vectors: int = 0
    num_lines: int = 0
    worst: float = 0.0
    failures: list[str] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    """Beginning of each fault, and the time when it was over and both engines ran again."""
    words: list[tuple[float, float]] = field(default_factory=list)
    """Time of each answer to one word, and seconds from request to answer."""
    memory: list[tuple[float, float, float]] = field(default_factory=list)
    """Time, resident MB of the server, and resident MB of its children."""
    beats: list[np.ndarray] = field(default_factory=list)
    """Time of each silence of the event loop, and its seconds; one array per server."""
    capacity: list[float] = field(default_factory=list)
    """Requests per second without faults, one number per server."""

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    def fail(self, reason: str) -> None:
        """Record a failure, with its time and the last fault before it."""
        last = self.faults[-1][1] if self.faults else "no fault"
        self.failures.append(f"{self.now():.0f} s, after {last}: {reason}")


@dataclass(slots=True)
class Target:
    """The server that is tried, and what its clients know."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    key: str | None
    texts: list[str]
    expected: dict[str | None, np.ndarray]
    dims: tuple[int, ...]
    record: Record
    end: float = 0.0
    """When the clients stop, on `time.perf_counter`."""

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.process.pid

    def limit(self, limit: int, value: int) -> None:
        """Let the server change a limit of its process; -1 is the usual value."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"%d %d\n" % (limit, value))
        self.process.stdin.flush()

    def request(self, method: str, path: str, body: object = None) -> bytes:
        """The bytes of a request, with the key."""
        content = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


def main(minutes: float = 30.0, write: bool = False, serve: Path | None = None) -> None:
    """Run for `minutes`. The benchmark itself starts processes with `serve`, a file of settings."""
    if serve is not None:
        run_server(serve)
        return
    encoder = Encoder.load(precision="float32", device="cpu")
    texts = make_texts(NUM_TEXTS)
    tasks = [None, *(task.name for task in encoder.config.tasks)]
    expected = {task: encoder.encode(texts, task=task, progress=False) for task in tasks}
    dims = encoder.config.dims
    del encoder
    record = Record()
    for key in (None, SHARED_KEY):
        with job_folder() as folder, serving(folder, key) as (port, process, beats):
            target = Target(port, process, folder, key, texts, expected, dims, record)
            started = record.now()
            asyncio.run(run(target, minutes * 30))
            silences = np.fromfile(beats, np.float64).reshape(-1, 2)
            silences[:, 0] += started
            record.beats.append(silences)
    check(record)
    plot = "serving-chaos.svg"
    body = describe(record, minutes, plot)
    sys.stdout.write(body + "\n")
    plot_record(record, RESULTS / plot if write else Path("build") / plot)
    if write:
        write_section("chaos", body, ROOT / "docs" / "serving.md")
    if record.failures:
        sys.exit("\n".join(record.failures[:40]))


def run_server(settings: Path) -> None:
    """Run a server whose engine dies at a certain token, and that measures its own event loop."""
    given = json.loads(settings.read_text())
    service = make_service(
        ["mini"],
        make_engine=faulty_engine,
        num_engines=NUM_ENGINES,
        batches=Path(given["folder"]) / "jobs",
        api_keys=ApiKeys(hash_keys([given["key"]] if given["key"] else [])),
        limits=Limits(engine_seconds=5.0, body_bytes=8_000_000),
    )

    async def beat(_: Service) -> None:
        # Silences are written as they are measured, so a server that is killed loses none.
        with Path(given["beats"]).open("ab", buffering=0) as file:
            began = last = time.perf_counter()
            while True:
                await asyncio.sleep(BEAT_SECONDS)
                now = time.perf_counter()
                file.write(struct.pack("dd", now - began, now - last - BEAT_SECONDS))
                last = now

    async def obey(_: Service) -> None:
        # The server lowers its own limits, since another process may not do so everywhere.
        usual: dict[int, tuple[int, int]] = {}
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            limit, value = map(int, line.split())
            soft, hard = usual.setdefault(limit, resource.getrlimit(limit))
            resource.setrlimit(limit, (soft if value < 0 else value, hard))
        await asyncio.Event().wait()

    make_server(service, "127.0.0.1", given["port"], background=[beat, obey]).run()


@contextlib.contextmanager
def job_folder() -> Iterator[Path]:
    """A new folder for batch jobs: a small file system if this process may mount one."""
    with tempfile.TemporaryDirectory(prefix="polyvec-chaos-") as name:
        folder = Path(name, "disk")
        folder.mkdir()
        Path(name).chmod(0o755)
        options = f"size={DISK_BYTES},mode=0777"
        mounted = (
            os.getuid() == 0
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False
            ).returncode
        )
        try:
            yield folder
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def serving(folder: Path, key: str | None) -> Iterator[tuple[int, subprocess.Popen[bytes], Path]]:
    """A server of its own: its port, its process, and the file of its silences."""
    port, user = free_port(), "nobody" if os.getuid() == 0 else None
    settings = folder.parent / "settings.json"
    beats = folder.parent / "beats"
    beats.touch()
    beats.chmod(0o666)
    given = {"port": port, "key": key, "folder": str(folder), "beats": str(beats)}
    settings.write_text(json.dumps(given))
    settings.chmod(0o644)
    command = [sys.executable, "-m", "benchmarks.chaos", "--serve", str(settings)]
    log = (ROOT / "build" / "chaos.log").open("ab")
    process = subprocess.Popen(
        command, user=user, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT
    )
    try:
        yield port, process, beats
        if process.poll() is not None:
            raise RuntimeError(f"the server has ended with {process.returncode}")
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


async def run(target: Target, seconds: float) -> None:
    """Measure the capacity, and then run clients, the hostile client and faults for `seconds`."""
    await until_ready(target, 120)
    target.end = time.perf_counter() + CAPACITY_SECONDS
    before = sum(target.record.statuses.values())
    await asyncio.gather(*(client(target, seed, None) for seed in range(NUM_CLIENTS)))
    capacity = (sum(target.record.statuses.values()) - before) / CAPACITY_SECONDS
    target.record.capacity.append(capacity)
    target.end = time.perf_counter() + seconds
    rate = LOAD * capacity
    clients = (client(target, seed, rate / NUM_CLIENTS) for seed in range(NUM_CLIENTS))
    async with asyncio.timeout(seconds + 600):
        await asyncio.gather(
            watch(target), inject_faults(target), attack(target), submit_jobs(target), *clients
        )
    if not await until_ready(target, 60):
        target.record.fail("the server is not ready at the end")


async def until_ready(target: Target, seconds: float) -> bool:
    """Wait until /ready is 200; False if it is not in time."""
    end = time.perf_counter() + seconds
    connection = Connection(target.port)
    while time.perf_counter() < end:
        with contextlib.suppress(OSError, ConnectionError):
            if (await connection.ask(target.request("GET", "/ready")))[0] == 200:
                return True
        await asyncio.sleep(0.2)
    return False


async def client(target: Target, seed: int, rate: float | None) -> None:
    """Send valid requests: `rate` per second, or each after the answer to the last one."""
    connection, rng, due = Connection(target.port), random.Random(seed), time.perf_counter()
    while time.perf_counter() < target.end:
        if rate is not None:
            due += rng.expovariate(rate)
            # After a fault, a client does not make up for what it could not send.
            due = max(due, time.perf_counter() - 1)
            await asyncio.sleep(due - time.perf_counter())
        kind = rng.choices(("word", "texts", "rerank", "classify"), (8, 4, 1, 1))[0]
        rows = rng.sample(range(NUM_TEXTS), 1 if kind == "word" else 8)
        task, dim = rng.choice(list(target.expected)), rng.choice(target.dims)
        texts = [target.texts[row] for row in rows]
        sent = time.perf_counter()
        if kind in ("word", "texts"):
            body = {"model": MODEL, "input": texts, "task": task, "dimensions": dim}
            answer = await ask(target, connection, target.request("POST", PATH, body))
            if answer is not None:
                if kind == "word" and rate is not None:
                    target.record.words.append((target.record.now(), answer[1] - sent))
                compare(target, answer[0], target.expected[task][rows], dim)
        elif kind == "rerank":
            body = {"model": MODEL, "query": texts[0], "documents": texts[1:]}
            await ask(target, connection, target.request("POST", "/v1/rerank", body))
        else:
            body = {"model": MODEL, "input": texts, "labels": ["cat", "bread", "city"]}
            await ask(target, connection, target.request("POST", "/v1/classify", body))
    connection.close()


async def ask(target: Target, connection: Connection, request: bytes) -> tuple[bytes, float] | None:
    """The body of the answer with status 200, and when its request was answered.

    Returns None for 429 and 503, and records a failure if there is no answer or another status.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            status, body = await connection.ask(request)
    except (OSError, ConnectionError, TimeoutError) as error:
        connection.close()
        target.record.fail(f"lost: {error!r}")
        return None
    target.record.statuses[status] += 1
    if status == 200:
        return body, time.perf_counter()
    if status not in (429, 503):
        target.record.fail(f"{status}: {body[:200]!r}")
    return None


def compare(target: Target, answer: bytes, full: np.ndarray, dim: int) -> None:
    """Record a failure unless an answer has the library's vectors, in their order."""
    record = target.record
    data = orjson.loads(answer)["data"]
    got = np.array([row["embedding"] for row in data], np.float32)
    want = full[:, :dim] / np.linalg.norm(full[:, :dim], axis=1, keepdims=True)
    if got.shape != want.shape or [row["index"] for row in data] != list(range(len(want))):
        record.fail(f"vectors of shape {got.shape} instead of {want.shape}")
        return
    worst = float(np.abs(got - want).max())
    record.num_vectors += len(want)
    record.worst = max(record.worst, worst)
    if worst > TOLERANCE:
        record.fail(f"a vector is wrong by {worst:.2g}")


async def submit_jobs(target: Target) -> None:
    """Submit batch jobs, some with a text that ends the engine, and check every line."""
    connection, rng = Connection(target.port), random.Random(1)
    checks = []
    for number in itertools.count():
        if time.perf_counter() > target.end - QUIET_SECONDS:
            break
        rows = rng.sample(range(NUM_TEXTS), JOB_LINES)
        lines = [
            {"custom_id": str(row), "body": {"input": target.texts[row], "dimensions": 64}}
            for row in rows
        ]
        if number % 5 == 0:
            lines.append({"custom_id": "deadly", "body": {"input": [[0, DEATH, 2]]}})
        body = {"model": MODEL, "input": lines}
        with contextlib.suppress(OSError, ConnectionError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                status, answer = await connection.ask(
                    target.request("POST", "/v1/batch/embeddings", body)
                )
            # 507 is the answer while the disk is full.
            if status == 200:
                job = orjson.loads(answer)["batch_id"]
                checks.append(asyncio.create_task(check_job(target, job, rows, number % 5 == 0)))
            elif status not in (429, 503, 507):
                target.record.fail(f"a batch job got {status}: {answer[:200]!r}")
        await asyncio.sleep(JOB_INTERVAL_SECONDS)
    await asyncio.gather(*checks)
    connection.close()


async def check_job(target: Target, job: str, rows: list[int], deadly: bool) -> None:
    """Record a failure unless every line of a job is answered once, with its vector."""
    connection, path = Connection(target.port), f"/v1/batch/{job}"
    state: dict = {}
    while time.perf_counter() < target.end + JOB_SECONDS:
        with contextlib.suppress(OSError, ConnectionError):
            status, answer = await connection.ask(target.request("GET", path))
            state = orjson.loads(answer) if status == 200 else state
        if state.get("status") == "completed":
            break
        await asyncio.sleep(1)
    else:
        target.record.fail(f"a batch job did not end: {state}")
        return
    status, output = await connection.ask(target.request("GET", f"{path}/output"))
    _, errors = await connection.ask(target.request("GET", f"{path}/errors"))
    lines = [orjson.loads(line) for line in output.splitlines()]
    failed = [orjson.loads(line)["custom_id"] for line in errors.splitlines()]
    ids = [line["custom_id"] for line in lines]
    if Counter(ids) != Counter(map(str, rows)) or failed != ["deadly"] * deadly:
        target.record.fail(
            f"a job of {len(rows)} lines has {len(set(ids))} answers, errors {failed}"
        )
    for line in lines:
        body = orjson.dumps(line["response"]["body"])
        compare(target, body, target.expected[None][[int(line["custom_id"])]], 64)
    target.record.num_lines += len(lines)
    connection.close()


async def watch(target: Target) -> None:
    """Record the memory of the server and of its engines."""
    while time.perf_counter() < target.end:
        engines = sum(map(resident, children(target.pid)))
        target.record.memory.append((target.record.now(), resident(target.pid), engines))
        await asyncio.sleep(1)


# --- faults of the machine -----------------------------------------------------------------------


async def inject_faults(target: Target) -> None:
    """Inject one fault after another."""
    faults: list[Callable[[Target], Awaitable[None]]] = [
        kill_engines,
        no_descriptors,
        stop_engines,
        full_disk,
        deadly_text,
        no_processes,
        leave_connections,
        damage_jobs,
    ]
    for fault in itertools.cycle(faults):
        await asyncio.sleep(FAULT_INTERVAL_SECONDS)
        if time.perf_counter() > target.end - QUIET_SECONDS:
            return
        began = target.record.now()
        target.record.faults.append((began, fault.__name__.replace("_", " ")))
        await fault(target)
        await until_recovered(target)
        target.record.outages.append((began, target.record.now()))


def find_engines(target: Target) -> list[int]:
    """The ids of the engine processes that have loaded their model."""
    return [pid for pid in children(target.pid) if resident(pid) > ENGINE_MEGABYTES]


async def until_recovered(target: Target) -> None:
    """Wait until all engines run, for at most `ANSWER_SECONDS`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            while len(find_engines(target)) < NUM_ENGINES:
                await asyncio.sleep(0.2)
            # They run their first batches.
            await asyncio.sleep(1)


def send_engines(target: Target, number: signal.Signals) -> list[int]:
    """Send a signal to the engine processes, and return their ids."""
    engines = find_engines(target)
    for pid in engines:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return engines


async def kill_engines(target: Target) -> None:
    """Kill the engines."""
    send_engines(target, signal.SIGKILL)


async def stop_engines(target: Target) -> None:
    """Stop the engines for some seconds."""
    stopped = send_engines(target, signal.SIGSTOP)
    await asyncio.sleep(FAULT_SECONDS)
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def squeeze(target: Target, limit: int, value: int) -> None:
    """Lower a limit of the server's process for some seconds, and kill its engines meanwhile."""
    target.limit(limit, value)
    await asyncio.sleep(0.1)
    send_engines(target, signal.SIGKILL)
    await asyncio.sleep(FAULT_SECONDS)
    target.limit(limit, -1)


async def no_descriptors(target: Target) -> None:
    """Let the server open no file, socket or pipe."""
    await squeeze(target, resource.RLIMIT_NOFILE, 8)


async def no_processes(target: Target) -> None:
    """Let the server start no process or thread."""
    await squeeze(target, resource.RLIMIT_NPROC, 1)


async def full_disk(target: Target) -> None:
    """Fill the disk of the batch jobs, or forbid the server to write files."""
    free = shutil.disk_usage(target.folder).free
    if free <= DISK_BYTES:
        filler = target.folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            for _ in range(DISK_BYTES // 4_096):
                file.write(bytes(4_096))
        await asyncio.sleep(FAULT_SECONDS)
        filler.unlink()
        return
    target.limit(resource.RLIMIT_FSIZE, 0)
    await asyncio.sleep(FAULT_SECONDS)
    target.limit(resource.RLIMIT_FSIZE, -1)


async def damage_jobs(target: Target) -> None:
    """Put damaged jobs into the folder of batch jobs."""
    for content in (b"", b'{"id": "', b"[]", b'{"total": -1}'):
        folder = target.folder / "jobs" / f"batch_{secrets.token_hex(12)}"
        folder.mkdir()
        (folder / "job.json").write_bytes(content)
        folder.chmod(0o777)
        (folder / "job.json").chmod(0o666)


async def deadly_text(target: Target) -> None:
    """Send a text that ends the engine."""
    body = {"model": MODEL, "input": [[0, DEATH, 2]]}
    await hostile(target, "deadly text", target.request("POST", PATH, body))


async def leave_connections(target: Target) -> None:
    """Open connections that send half a request, and connections that read no answer."""
    body = {"model": MODEL, "input": ["a"] * 1_000}
    request = target.request("POST", PATH, body)
    loop = asyncio.get_running_loop()
    kept = []
    for number in range(20):
        with contextlib.suppress(OSError):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            one.setblocking(False)
            await loop.sock_connect(one, ("127.0.0.1", target.port))
            await loop.sock_sendall(one, request if number < 4 else request[: len(request) // 2])
            kept.append(one)
    await asyncio.sleep(FAULT_SECONDS)
    for one in kept[::2]:
        one.close()
    # The others are left to the server's limits of time.
    loop.call_later(100, lambda: [one.close() for one in kept])


# --- the hostile client --------------------------------------------------------------------------


def hostile_requests(target: Target) -> dict[str, bytes]:
    """The most expensive requests that are known."""

    def post(path: str, body: object) -> bytes:
        return target.request("POST", path, body)

    keys = b"".join(b',"k%d":1' % number for number in range(500_000))
    start = b'{"model":"polyvec-mini","input":'
    head = target.request("GET", "/v1/models").removesuffix(b"\r\n")
    return {
        "unknown keys": post(PATH, start + b'"a"' + keys + b"}"),
        "token lists": post(PATH, start + b"[" + b"[5]," * 1_500_000 + b"[5]]}"),
        "empty texts": post(PATH, start + b"[" + b'"",' * 2_000_000 + b'""]}'),
        "nested lists": post(PATH, start + b"[" * 990 + b"1" + b"]" * 990 + b"}"),
        "deep nesting": post(PATH, start + b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000 + b"}"),
        "expanding characters": post(PATH, {"model": MODEL, "input": "\ufdfa" * 600_000}),
        "a long word": post(PATH, {"model": MODEL, "input": "a" * 7_000_000}),
        "a long text": post(PATH, {"model": MODEL, "input": "word " * 1_500_000, "truncate": True}),
        "surrogates": post(PATH, start + b'"' + b"\\ud800" * 1_000_000 + b'"}'),
        "numbers": post(PATH, start + b"[" + b"9" * 4_000_000 + b"]}"),
        "many texts": post(PATH, {"model": MODEL, "input": ["a b"] * 2_048}),
        "segments": post("/v1/segment", {"content": "a. " * 300_000, "return_chunks": True}),
        "hidden states": post("/embed_all", {"inputs": ["word " * 500] * 60}),
        "headers": head + b"".join(b"h%d: v\r\n" % n for n in range(1_000_000)) + b"\r\n",
        "a long header": head + b"x: " + b"a" * 20_000_000 + b"\r\n\r\n",
        "a long path": b"GET /" + b"a" * 20_000_000 + b" HTTP/1.1\r\n\r\n",
        "no request": secrets.token_bytes(1_000_000),
    }


async def attack(target: Target) -> None:
    """Send hostile requests, one after another."""
    requests = list(hostile_requests(target).items())
    for name, request in itertools.cycle(requests):
        if time.perf_counter() > target.end - QUIET_SECONDS:
            return
        await hostile(target, name, request)
        await asyncio.sleep(HOSTILE_PAUSE_SECONDS)


async def hostile(target: Target, name: str, request: bytes) -> None:
    """Send a hostile request. An error of the server is a failure."""
    status = 0
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=2**16)
            try:
                with contextlib.suppress(OSError):
                    writer.write(request)
                    await writer.drain()
                line = await reader.readline()
                status = int(line.split()[1]) if line.startswith(b"HTTP/") else 0
                while status == 200 and await reader.read(2**20):
                    # Its answer is read, up to the pause of a connection that is kept alive.
                    if reader.at_eof() or not reader._buffer:  # type: ignore[attr-defined]
                        break
            finally:
                writer.transport.abort()
    except (OSError, ConnectionError, TimeoutError, ValueError, IndexError) as error:
        if isinstance(error, TimeoutError):
            target.record.fail(f"hostile, {name}: no status in {ANSWER_SECONDS} s")
    target.record.hostile[f"{name} {status or 'closed'}"] += 1
    if status >= 500 and status not in (503, 504):
        target.record.fail(f"hostile, {name}: {status}")


# --- results -------------------------------------------------------------------------------------


def check(record: Record) -> None:
    """Record failures of memory, of the event loop and of latency."""
    half = record.memory[len(record.memory) // 2][0]
    for part in (
        [row for row in record.memory if row[0] < half],
        [row for row in record.memory if row[0] >= half],
    ):
        server = np.array([row[1] for row in part])
        quarter = len(server) // 4
        early, late = np.median(server[quarter : 2 * quarter]), np.median(server[-quarter:])
        if late > MAX_GROWTH * early:
            record.failures.append(f"memory grew from {early:.0f} to {late:.0f} MB")
    silences = np.concatenate(record.beats)[:, 1]
    if silences.max() > MAX_BEAT_SECONDS:
        record.failures.append(f"the event loop was silent for {silences.max():.2f} s")
    if np.percentile(silences, 99.9) > MAX_BEAT_P999_SECONDS:
        record.failures.append(f"p99.9 of silences is {np.percentile(silences, 99.9):.3f} s")
    p99 = np.percentile(words_between_faults(record), 99)
    if p99 > MAX_WORD_P99_SECONDS:
        record.failures.append(f"p99 of one word between the faults is {p99:.3f} s")


def words_between_faults(record: Record) -> np.ndarray:
    """Seconds from request to answer of the words that were under way during no fault."""
    return np.array(
        [
            seconds
            for answered, seconds in record.words
            if not any(
                began < answered and answered - seconds < over for began, over in record.outages
            )
        ]
    )


def describe(record: Record, minutes: float, plot: str) -> str:
    """The table of docs/serving.md."""
    silences = 1e3 * np.concatenate(record.beats)[:, 1]
    words = [seconds for _, seconds in record.words]

    def latency(seconds: np.ndarray | list[float]) -> str:
        median, high = 1e3 * np.percentile(seconds, (50, 99))
        return f"{median:,.0f} and {high:,.0f} ms, of {len(seconds):,}"

    server = np.array([megabytes for _, megabytes, _ in record.memory])
    half = len(server) // 2
    faults = Counter(name for _, name in record.faults)
    statuses = ", ".join(f"{number:,} x {status}" for status, number in record.statuses.items())
    rows = [
        ["capacity without and with keys", " and ".join(f"{c:.0f} req/s" for c in record.capacity)],
        ["valid requests by status", statuses],
        ["vectors compared with the library's", f"{record.num_vectors:,}"],
        ["largest difference of a number", f"{record.worst:.1e}"],
        ["lines of batch jobs, each answered once", f"{record.num_lines:,}"],
        ["faults", ", ".join(f"{number} x {name}" for name, number in faults.items())],
        ["hostile requests", f"{sum(record.hostile.values()):,}"],
        ["one word between the faults, p50 and p99", latency(words_between_faults(record))],
        ["one word at any time, p50 and p99", latency(words)],
        [
            "silence of the event loop, p99.9 and longest",
            f"{np.percentile(silences, 99.9):.0f} and {silences.max():.0f} ms",
        ],
        [
            "memory of the server, median of the first and of the second half",
            f"{np.median(server[:half]):.0f} and {np.median(server[half:]):.0f} MB",
        ],
        ["failures", f"{len(record.failures):,}"],
    ]
    return describe_run("chaos", minutes, rows, plot, "latency, silence and memory over time")


def plot_record(record: Record, path: Path) -> None:
    """Plot latency, silences and memory over time, with the faults."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(9, 7), layout="constrained")
    for name, (when, values), axis in (
        ("one word, p99 in 5 s", _bin(np.array(record.words), 99), axes[0]),
        ("one word, p50 in 5 s", _bin(np.array(record.words), 50), axes[0]),
        ("event loop, longest silence in 5 s", _bin(np.concatenate(record.beats), 100), axes[1]),
    ):
        axis.plot(when / 60, 1e3 * values, lw=0.9, label=name)
        axis.set(ylabel="ms", yscale="log")
        axis.legend(loc="upper right")
    minutes, server, engines = np.array(record.memory).T
    axes[2].plot(minutes / 60, server, label="server")
    axes[2].plot(minutes / 60, engines, lw=0.8, label="engines")
    axes[2].set(ylabel="resident MB", xlabel="minutes", ylim=(0, None))
    axes[2].legend(loc="upper right")
    for when, _ in record.faults:
        for axis in axes:
            axis.axvline(when / 60, color="0.85", lw=0.5, zorder=0)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _bin(points: np.ndarray, percent: float, seconds: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """A percentile of (time, value) points in each interval of time."""
    bins = (points[:, 0] // seconds).astype(int)
    numbers = np.unique(bins)
    values = [np.percentile(points[bins == number, 1], percent) for number in numbers]
    return numbers * seconds, np.array(values)


if __name__ == "__main__":
    tyro.cli(main)
