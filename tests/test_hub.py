"""Hubs, mirrors and proxies that answer anything: a whole model, or one sentence within bounds."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyvec.checkpoint import load_checkpoint

COMMIT = "0123456789abcdef" * 2 + "01234567"

FAULTS = {
    "list": "could not be downloaded",
    "null": "could not be downloaded",
    "page": "could not be downloaded",
    "keys": "could not be downloaded",
    "deep": "could not be downloaded",
    "silent": "cannot be reached",
    "endless": "more than 100,000 bytes",
    "slow": "more than 1 seconds",
    "pages": "more than 4 pages",
    "circle": "could not be downloaded|refused|cannot be reached",
    "gated": "status 403; set HF_TOKEN",
    "missing": "refused .* with status 404",
    "cut": "was cut 2 times",
    "growing": "more than 100,000 bytes",
    "whole": "",
}
"""The fault of each model of the hub below, with what is said of it."""


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub whose model "org/FAULT" has that fault."""

    protocol_version = "HTTP/1.1"
    folder: Path
    mended: set[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        fault = next((word for word in path.split("/") if word in FAULTS), "whole")
        self.close_connection = True
        with contextlib.suppress(OSError):
            if fault not in self.mended:
                if f"/{fault}" in path and path.startswith("/api/"):
                    self.answer_api(fault, path)
                    return
                if fault in ("cut", "growing") and path.endswith(".safetensors"):
                    self.answer_file(fault, path)
                    return
            self.answer(self.content(path))

    do_HEAD = do_GET

    def content(self, path: str) -> bytes:
        if not path.startswith("/api/"):
            return (self.folder / path.split(f"/resolve/{COMMIT}/")[-1]).read_bytes()
        files = [
            {
                "type": "file",
                "path": file.relative_to(self.folder).as_posix(),
                "size": file.stat().st_size,
                "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            }
            for file in self.folder.rglob("*.*")
        ]
        siblings = [{"rfilename": file["path"]} for file in files]
        about = {"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings}
        return json.dumps(files if "/tree/" in path else about).encode()

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.head(status, {"Content-Length": str(len(body)), **headers}, body)
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        tag = hashlib.sha1(body).hexdigest()
        fixed = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Connection": "close"}
        for name, value in {**fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer_api(self, fault: str, path: str) -> None:
        bodies = {
            "list": b'["a", "b"]',
            "null": b"null",
            "page": b"<html>Please sign in</html>",
            "keys": b'{"error": "no"}',
            "deep": b"[" * 90_000,
        }
        if fault in bodies:
            self.answer(bodies[fault])
        elif fault == "silent":
            time.sleep(3)
        elif fault in ("endless", "slow"):
            self.head(200, {"Content-Type": "application/json"})
            for _ in range(10_000):
                self.wfile.write(b" " * (1 if fault == "slow" else 10_000))
                time.sleep(0.1 if fault == "slow" else 0)
        elif fault == "pages" and "/tree/" in path:
            link = f"<http://{self.headers['Host']}{path}?cursor=a>; rel=next"
            self.answer(b"[]", Link=link)
        elif fault == "circle":
            self.answer(b"", 302, Location=path)
        elif fault in ("gated", "missing"):
            code = {"gated": "GatedRepo", "missing": "RepoNotFound"}[fault]
            self.answer(b"{}", 403 if fault == "gated" else 404, **{"X-Error-Code": code})
        else:
            self.answer(self.content(path))

    def answer_file(self, fault: str, path: str) -> None:
        body = self.content(path)
        if self.command == "HEAD":
            self.answer(body)
        elif fault == "cut":
            self.head(200, {"Content-Length": str(len(body))}, body)
            self.wfile.write(body[: len(body) // 2])
        else:
            self.head(200, {}, body)
            for _ in range(10_000):
                self.wfile.write(b" " * 10_000)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


SCRIPT = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from polyvec import hub
hub.MAX_ANSWER_BYTES, hub.MAX_ANSWER_SECONDS = 100_000, 1
hub.MAX_PAGES, hub.MAX_STARTS = 4, 2
said = {}
for name in sys.argv[1:]:
    started = time.monotonic()
    try:
        answer = str(hub.download(f"org/{name}"))
    except ValueError as error:
        answer = f"refused: {error}"
    said[name] = answer, time.monotonic() - started
sys.stdout.write(json.dumps(said))
"""


@pytest.fixture(scope="module")
def hub(tiny_model: Path) -> Iterator[tuple[str, set[str]]]:
    """The address of a hub, and its models whose fault has been mended."""
    mended: set[str] = set()
    handler = type("Handler", (Hub,), {"folder": tiny_model, "mended": mended})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", mended
    server.shutdown()
    server.server_close()


def ask(address: str, home: Path, *names: str, **settings: str) -> dict[str, tuple[str, float]]:
    """What a process that downloads these models says of each, and its seconds."""
    variables = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **settings,
    }
    command = [sys.executable, "-c", SCRIPT, *names]
    run = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | variables, check=True, timeout=300
    )
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_any_answer_gives_a_model_or_one_sentence_in_bounded_time(
    hub: tuple[str, set[str]], tmp_path: Path
):
    said = ask(hub[0], tmp_path, *FAULTS)
    for name, (answer, seconds) in said.items():
        if name == "whole":
            assert (Path(answer) / "config.json").is_file()
        else:
            assert answer.startswith("refused: ") and f"org/{name}" in answer
            assert re.search(FAULTS[name], answer), answer
            assert "\n" not in answer and len(answer) < 500
        # What is bounded here would take minutes, or never end.
        assert seconds < 60


def test_a_cut_download_is_not_taken_for_a_model_later(
    hub: tuple[str, set[str]], tmp_path: Path, tiny_model: Path
):
    address, mended = hub
    assert "was cut" in ask(address, tmp_path, "cut")["cut"][0]
    assert "is not whole" in ask(address, tmp_path, "cut", HF_HUB_OFFLINE="1")["cut"][0]
    mended.add("cut")
    folder = Path(ask(address, tmp_path, "cut")["cut"][0])
    assert ask(address, tmp_path, "cut", HF_HUB_OFFLINE="1")["cut"][0] == str(folder)
    for path in tiny_model.rglob("*.*"):
        assert (folder / path.relative_to(tiny_model)).read_bytes() == path.read_bytes()
    load_checkpoint(folder)


def test_a_hub_that_nobody_serves_is_one_sentence(tmp_path: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert "cannot be reached" in ask(address, tmp_path, "whole")["whole"][0]
