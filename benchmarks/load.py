"""A running `polyvec serve`, and a client that costs little beside it."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from polyvec.chunking import split_sentences

NOTES = Path(__file__).parent.parent / "examples" / "notes"
PATH = "/v1/embeddings"


def make_texts(number: int) -> list[str]:
    """Sentences of the example notes, in ten languages, each text different from all others."""
    sentences = [
        " ".join(text[start:end].split())
        for text in (path.read_text("utf-8") for path in sorted(NOTES.iterdir()) if path.is_file())
        for start, end in split_sentences(text)
    ]
    return [f"{i} {sentences[i % len(sentences)]}" for i in range(number)]


def make_request(path: str, body: object) -> bytes:
    """The bytes of a POST request; a body that is bytes is sent as it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int, seconds: float = 120) -> Iterator[subprocess.Popen]:
    """Start a server, wait until its /health is 200, and stop it in the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + seconds
        while not is_healthy(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(command)} does not start")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def serve_command(port: int, *options: str) -> list[str]:
    """How to start our own server."""
    return [sys.executable, "-m", "polyvec", "serve", "--port", str(port), *options]


def is_healthy(port: int) -> bool:
    """Whether the server says that it can answer."""
    try:
        fetch(port, "/health")
    except (OSError, urllib.error.HTTPError):
        return False
    return True


def fetch(port: int, path: str) -> str:
    """A page of the server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def read_metric(port: int, name: str) -> float:
    """A number from /metrics, summed over its labels."""
    lines = fetch(port, "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int) -> float:
    """Megabytes of a process in memory; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Connection:
    """One keep-alive connection; one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """The status and body of the answer. Connects again if the server hung up before."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(request)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            body = await reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            raise ConnectionError("the server hung up") from None
        if b"connection: close" in head:
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        """Hang up, whatever is under way."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
