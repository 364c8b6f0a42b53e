"""The text of the pages of a PDF, read by PDFium in a process of its own (`pdf_process`).

The process serves one file after another. It is ended when a file takes too long, and started again
for the next one.
"""

import atexit
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Lock, Timer

from polyvec.search.readers.page_lines import drop_furniture, join_words
from polyvec.search.readers.pieces import Cut, Piece

MAX_PAGES = 5_000
"""The pages that are read of a longer PDF."""

TEXT_FACTOR = 8
"""The pages of a file show at most this many characters per byte, and `SPARE_CHARACTERS` more.
Pages can share what they show, and packed bytes unpack to a thousand times their number."""

SPARE_CHARACTERS = 1_000_000

SECONDS = 30
"""The time for a file, and one second more per MiB. A page takes a few thousandths of a second."""

_lock = Lock()
_process: subprocess.Popen[bytes] | None = None


def pdf_pages(raw: bytes) -> Iterator[Piece]:
    """Yield the number and the text of each page.

    Raises ValueError if the file is no PDF that can be read, and Cut after the pages that could be
    read, if some could not.
    """
    with _lock:
        pages, end = _ask(raw)
    if not any(text.strip() for _, text in pages):
        raise ValueError(end or "it has no text; it may be a scan")
    for number, text in drop_furniture(join_words(pages)):
        yield number, text + "\n\n"
    if end:
        raise Cut(end)


def _ask(raw: bytes) -> tuple[list[Piece], str]:
    """The pages that can be read, and the reason why these are not all; "" if they are."""
    process = _running_process()
    assert process.stdin is not None and process.stdout is not None
    seconds = SECONDS + (len(raw) >> 20)
    characters = TEXT_FACTOR * len(raw) + SPARE_CHARACTERS
    pages = list[Piece]()
    is_answered, is_late = False, False

    def end_late() -> None:
        nonlocal is_late
        is_late = True
        process.kill()

    timer = Timer(seconds, end_late)
    timer.start()
    try:
        process.stdin.write(f"{len(raw)} {MAX_PAGES} {characters} {seconds}\n".encode() + raw)
        process.stdin.flush()
        for line in process.stdout:
            if not line.endswith(b"\n"):
                break
            reply = json.loads(line)
            if "end" in reply:
                is_answered = True
                return pages, reply["end"]
            pages.append((reply["page"], reply["text"]))
    except BrokenPipeError:
        # It ended before it had read the file.
        pass
    finally:
        timer.cancel()
        if is_late or not is_answered:
            stop_process()
    reason = f"takes longer than {seconds} s" if is_late else "crashes the reader"
    if not pages:
        return pages, f"not a PDF that can be read; it {reason}"
    return pages, f"only the pages up to page {pages[-1][0]} are read; the next one {reason}"


def _running_process() -> subprocess.Popen[bytes]:
    global _process
    if _process is None or _process.poll() is not None:
        stop_process()
        script = Path(__file__).with_name("pdf_process.py")
        # With -P, the modules beside the script do not hide others of the same name.
        _process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    return _process


@atexit.register
def stop_process() -> None:
    """End the process, if it runs. The next PDF starts it again."""
    global _process
    if _process is not None:
        process, _process = _process, None
        process.kill()
        # This also closes the pipes.
        process.communicate()
