"""Starting a server as its users do, and waiting for what another process or thread does."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable

import httpx


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Return as soon as `condition()` holds; `seconds` only ends what would hang.

    A process that imports PyTorch from a cold disk, beside other work, has taken over a minute.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"in vain for {seconds} s"
        time.sleep(0.005)


def start_server(*options: str, optimise: bool = False) -> tuple[subprocess.Popen, str]:
    """`polyvec serve`, ready, in a process of its own that the caller ends; and its address.

    It drains as soon as it is told to stop, since no load balancer has to notice.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = [sys.executable, *(["-O"] if optimise else [])]
    command = [*python, "-m", "polyvec", "serve", "--port", str(port), *options]
    command += ["--shutdown-delay-seconds", "0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{url}/ready").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(ready)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process, url
