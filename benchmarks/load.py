"""A running `polyvec serve`, and a client that takes little of the processor's time."""

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
    """Return different texts: sentences of the example notes in ten languages, with a number."""
    sentences = [
        " ".join(text[start:end].split())
        for text in (path.read_text("utf-8") for path in sorted(NOTES.iterdir()) if path.is_file())
        for start, end in split_sentences(text)
    ]
    return [f"{i} {sentences[i % len(sentences)]}" for i in range(number)]


def make_request(path: str, body: object) -> bytes:
    """Return the bytes of a POST request. A body is sent as JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def free_port() -> int:
    """Return a port on which no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int, seconds: float = 120) -> Iterator[subprocess.Popen]:
    """Start a server, wait until it is healthy, and stop it at the end.

    Raises RuntimeError if it is not healthy after `seconds`.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + seconds
        while not is_healthy(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def serve_command(port: int, *options: str) -> list[str]:
    """Return the command that starts polyvec's server."""
    return [sys.executable, "-m", "polyvec", "serve", "--port", str(port), *options]


def is_healthy(port: int) -> bool:
    """Tell whether the server answers /health with status 200."""
    try:
        fetch(port, "/health")
    except (OSError, urllib.error.HTTPError):
        return False
    return True


def fetch(port: int, path: str) -> str:
    """Return the body of a GET request."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def read_metric(port: int, name: str) -> float:
    """Return a metric from /metrics, summed over its labels."""
    lines = fetch(port, "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int) -> float:
    """Return the resident memory of a process in megabytes; 0 if the process has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Connection:
    """A keep-alive connection for one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and return the status and the body of the answer.

        A closed connection is opened again. Raises ConnectionError if the server closes the
        connection before it has answered.
        """
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
            raise ConnectionError("the server closed the connection") from None
        if b"connection: close" in head:
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        """Close the connection at once, even during a request."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
