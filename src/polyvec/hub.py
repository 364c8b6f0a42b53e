"""Models from the Hugging Face hub: only safetensors and JSON files, and never code.

`huggingface_hub` reads its own settings: HF_TOKEN for models with restricted access, HF_ENDPOINT
for a mirror, HF_HUB_OFFLINE to use only what is cached, HF_HOME for the cache, and
HF_HUB_DOWNLOAD_TIMEOUT for the seconds that it waits for the next bytes.

The library waits for ever for an answer of the hub's API, reads it whatever its size, and begins a
file again as often as its download is cut. Therefore its answers are limited here while a model is
downloaded.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import PARTIAL_CONTENT
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import get_session

PATTERNS = ["*.safetensors", "*.json"]
"""The files of a model. ONNX, pickle and Python files are not downloaded."""

MAX_STARTS = 5
"""Most times that the download of a file begins at its first byte."""

MAX_PAGES = 100
"""Most answers of the API for one model. A model's list of files has one or two pages."""

MAX_ANSWER_BYTES = 16 * 2**20
"""Largest answer of the API, and largest file of unknown size."""

MAX_ANSWER_SECONDS = 60
"""Longest time from the head of an answer of the API to its end."""

CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""The HTTP client's own error. Versions of the library have used httpx and httpx2."""


def download(name: str) -> Path:
    """The folder of a hub model, which is downloaded with a progress bar unless it is cached.

    `name` is "org/name", or "org/name@revision" for a branch, a tag or a commit. Without a network
    the cached model is used. Raises ValueError if the model does not exist or cannot be downloaded.
    """
    model, _, revision = name.partition("@")
    # It reports every attempt; the last one is reported here.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        with _limited_answers():
            folder = Path(
                snapshot_download(model, revision=revision or None, allow_patterns=PATTERNS)
            )
    except HFValidationError:
        raise ValueError(f"there is no folder {name}, and it names no hub model") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{name} is not whole on this machine yet, and the Hugging Face hub cannot be reached"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; set HF_TOKEN to a token that may read it" if status in (401, 403) else ""
        raise ValueError(
            f"the Hugging Face hub refused {name} with status {status}{hint}"
        ) from None
    # The library takes for granted that a mirror or a proxy answers what the hub answers, so any
    # expression that reads an answer can fail.
    except (
        CLIENT_ERROR,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} could not be downloaded ({type(error).__name__}: {reason}); "
            "check the network and HF_ENDPOINT"
        ) from None
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} has no config.json on the hub, so it is no model for polyvec")
    return folder


@contextmanager
def _limited_answers() -> Iterator[None]:
    """Limit what the library's HTTP client reads, and its waiting, until the block ends."""
    client = get_session()
    before = client.event_hooks
    starts: Counter[str] = Counter()
    sizes = [MAX_ANSWER_BYTES]

    def limit_waiting(request: Any) -> None:
        longest, waits = constants.HF_HUB_DOWNLOAD_TIMEOUT, request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            step: min(waits.get(step) or longest, longest)
            for step in ("connect", "read", "write", "pool")
        }

    def limit_answer(response: Any) -> None:
        request, size = response.request, MAX_ANSWER_BYTES
        seconds: float = MAX_ANSWER_SECONDS
        if request.method == "HEAD":
            announced = response.headers.get(
                "X-Linked-Size", response.headers.get("Content-Length")
            )
            sizes.append(int(announced or 0))
        elif "/api/" in request.url.path:
            starts["pages"] += 1
            if starts["pages"] > MAX_PAGES:
                raise ValueError(f"the list of its files has more than {MAX_PAGES} pages")
        elif response.is_success:
            # A file's head has been read before.
            size, seconds = max(sizes), math.inf
            address = str(request.url).partition("?")[0]
            starts[address] += response.status_code != PARTIAL_CONTENT
            if starts[address] > MAX_STARTS:
                raise ValueError(f"{address} was cut {MAX_STARTS} times")
        response.iter_bytes = _limit_bytes(response.iter_bytes, size, seconds)

    client.event_hooks = {
        "request": [*before["request"], limit_waiting],
        "response": [*before["response"], limit_answer],
    }
    try:
        yield
    finally:
        client.event_hooks = before


def _limit_bytes(
    read: Callable[..., Iterator[bytes]], size: int, seconds: float
) -> Callable[..., Iterator[bytes]]:
    """Return a function like `read` that raises ValueError beyond a size or a time from now."""
    end = time.monotonic() + seconds

    def read_limited(chunk_size: int | None = None) -> Iterator[bytes]:
        total = 0
        for chunk in read(chunk_size):
            total += len(chunk)
            if total > size:
                raise ValueError(f"an answer has more than {size:,} bytes")
            if time.monotonic() > end:
                raise ValueError(f"an answer takes more than {seconds:.0f} seconds")
            yield chunk

    return read_limited
