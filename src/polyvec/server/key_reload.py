"""Reading the API keys again while the server runs: when the key file changes, and on SIGHUP.

The file is polled, because notifications of the kernel miss changes on network file systems and in
the mounted secrets of Kubernetes, which replace a link. A change counts when the file has been the
same for one poll, so that a file that an editor is still writing is not read. An invalid file
changes nothing: the current keys stay, and the log gives the reason.
"""

import asyncio
import logging
import os
import signal
from types import FrameType

from polyvec.server.api_keys import ApiKeys
from polyvec.server.key_file import find_state, read_keys
from polyvec.server.metrics import log_event
from polyvec.server.service import Service

POLL_SECONDS = 0.5
"""Time between two looks at the key file. A change takes effect after one or two of them."""


def reload_on_hangup(api_keys: ApiKeys) -> None:
    """Handle SIGHUP, which otherwise ends the process. Call it in the main thread."""

    def handle(signum: int, frame: FrameType | None) -> None:
        api_keys.reload_requested = True

    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, handle)


async def reload_api_keys(service: Service) -> None:
    """Keep the API keys up to date until the task is cancelled."""
    keys = service.api_keys
    seen = keys.file_state
    while True:
        await asyncio.sleep(POLL_SECONDS)
        state = await asyncio.to_thread(find_state, keys.file)
        is_settled, seen = state == seen, state
        if keys.reload_requested or (is_settled and state != keys.file_state):
            keys.reload_requested = False
            keys.file_state = state
            await replace_keys(keys)


async def replace_keys(keys: ApiKeys) -> str | None:
    """Read the keys again. Returns why the current ones stay, or None if they were replaced."""
    if keys.file is None:
        log_event("API keys kept", {"reason": "the server has no --key-file to read again"})
        return "the server has no --key-file to read again"
    try:
        read = await asyncio.to_thread(read_keys, keys.file, os.environ)
    except ValueError as error:
        log_event("API keys kept", {"reason": str(error)}, level=logging.ERROR)
        return str(error)
    before = {key.name for key in keys.known}
    keys.replace(read)
    after = {key.name for key in keys.known}
    names = {"added": sorted(after - before), "removed": sorted(before - after)}
    log_event("API keys replaced", {"keys": len(after), **names}, level=logging.INFO)
    return None
