"""The API keys of the key file and of the environment variable, as the operator wrote them.

A line of the key file has a name, the SHA-256 of the key in hexadecimal, and optionally quotas:

    alice 9b74c989...a9b8c7d requests=500 tokens=1000000 concurrency=5

Empty lines and lines that start with `#` are skipped. The file is UTF-8, or UTF-16 with a byte
order mark. No message repeats any part of a line, since it may be a key.
"""

import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from polyvec.server.api_keys import (
    ANYONE,
    ApiKey,
    ApiKeys,
    FileState,
    TokenBucket,
    hash_key,
    hash_keys,
)
from polyvec.server.metrics import log_event
from polyvec.text_rows import find_encoding

KEYS_VARIABLE = "POLYVEC_API_KEYS"
"""The environment variable that may hold API keys, so that no list of processes shows them."""

KEY_SEPARATORS = re.compile(r"[\s,]+")
"""What separates the keys of the variable. RFC 6750 allows neither of them within a key."""

MAX_FILE_BYTES = 1_000_000
"""Largest key file: about 10,000 keys."""

MAX_NAME_CHARACTERS = 64

MAX_QUOTA = 10**12

DIGEST = re.compile(r"[0-9a-fA-F]{64}")
QUOTA = re.compile(r"(requests|tokens|concurrency)=([0-9]{1,13})")

EMPTY_DIGESTS = {hashlib.sha256(nothing).digest() for nothing in (b"", b"\n", b"\r\n")}
"""Digests of no key at all: what a shell computes if the variable with the key is empty."""

ALL_METRICS = "metrics=all"
"""Marks the key of an operator, for which /metrics shows the usage of all keys."""

LINE_FORM = (
    "a line must have a name, the key's SHA-256 as 64 hexadecimal digits, and optionally "
    "requests=N tokens=N concurrency=N metrics=all"
)


def load_api_keys(key_file: Path | None) -> ApiKeys:
    """The API keys of a file and of the environment. Without keys, every request is accepted.

    Raises ValueError if the file is unusable, or if the variable is set and holds no key.
    """
    if key_file is not None and os.name == "posix" and key_file.is_file():
        mode = key_file.stat().st_mode
        if mode & stat.S_IROTH:
            reason = f"every user of this machine can read it; to prevent it: chmod o-r {key_file}"
            log_event("key file is readable by all", {"file": str(key_file), "reason": reason})
    # Before the file is read, so that no later change is missed.
    state = find_state(key_file)
    return ApiKeys(read_keys(key_file, os.environ), file=key_file, file_state=state)


def find_state(path: Path | None) -> FileState:
    """The state of a file. Of a link, it is the state of its target."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def read_keys(key_file: Path | None, environment: Mapping[str, str]) -> list[ApiKey]:
    """All keys, whose names and digests differ. Raises ValueError."""
    from_environment = read_variable(environment)
    from_file = [] if key_file is None else read_key_file(key_file)
    names = {key.name for key in from_file}
    digests = {key.digest for key in from_file}
    for key in from_environment:
        if key.name in names or key.digest in digests:
            raise ValueError(
                f"{key.name} of {KEYS_VARIABLE} is in {key_file} too, by its name or by its "
                "digest; remove it from one of them"
            )
    keys = [*from_file, *from_environment]
    digests = {key.digest for key in keys}
    if any(hash_key(key.name) in digests for key in from_file):
        reason = "the log holds the names of keys; choose another name for this key"
        log_event("a name is a key in plain text", {"file": str(key_file), "reason": reason})
    return keys


def read_variable(environment: Mapping[str, str]) -> list[ApiKey]:
    """The keys of the environment variable, named key-1, key-2, ..., without quotas."""
    value = environment.get(KEYS_VARIABLE)
    if value is None:
        return []
    plain = [key for key in KEY_SEPARATORS.split(value) if key]
    if not plain:
        raise ValueError(
            f"{KEYS_VARIABLE} is set but holds no key. Set it to the keys, separated by spaces or "
            "commas; or unset it to use --key-file, or to accept every request without a key"
        )
    if len(set(plain)) != len(plain):
        raise ValueError(f"{KEYS_VARIABLE} holds the same key twice; remove one of the two")
    return hash_keys(plain)


def read_key_file(path: Path) -> list[ApiKey]:
    """The keys of a file. Raises ValueError that names the file and the line."""
    keys: dict[str, ApiKey] = {}
    digests = set[bytes]()
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _read_text(path)), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            key = _parse_key(fields)
            if key.name in keys:
                raise ValueError("another line has the same name")
            if key.digest in digests:
                raise ValueError("another line has the same key; every key needs its own line")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        keys[key.name] = key
        digests.add(key.digest)
    if not keys:
        raise ValueError(f"{path} contains no key; {LINE_FORM}")
    return list(keys.values())


def _read_text(path: Path) -> str:
    try:
        # A pipe without a writer must not block the start.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            # The mode of a link's target, as in a mounted secret of Kubernetes.
            _check_mode(path, os.fstat(descriptor).st_mode)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"the key file {path} cannot be read: {reason}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(
            f"{path} has more than {MAX_FILE_BYTES:,} bytes, which is too much for a key file"
        )
    try:
        text = content.decode(find_encoding(content[:2]))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} holds zero bytes; save the file as UTF-8")
    return text


def _check_mode(path: Path, mode: int) -> None:
    """Raise ValueError unless it is the mode of a file that only its owner may change."""
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder, must be a file of API keys")
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"{path} is a pipe or a device; a key file is read again when it changes, so it must "
            "be a regular file"
        )
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"{path} can be changed by other users, who could add keys; run: chmod go-w {path}"
        )


def _parse_key(fields: Sequence[str]) -> ApiKey:
    """The key of a line. Raises ValueError that says what is wrong with it."""
    name, *rest = fields
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise ValueError(
            f"the name must have at most {MAX_NAME_CHARACTERS} characters, all of them printable"
        )
    if name == ANYONE:
        raise ValueError(f"the name {ANYONE} stands for clients of a server without keys")
    if not rest:
        raise ValueError(LINE_FORM)
    if not DIGEST.fullmatch(rest[0]):
        raise ValueError(
            "the second field is not a SHA-256, which has 64 hexadecimal digits. If it is the key "
            f"itself, replace it by its digest, as docs/serving.md shows; {LINE_FORM}"
        )
    digest = bytes.fromhex(rest[0])
    if digest in EMPTY_DIGESTS:
        raise ValueError(
            "the digest is that of an empty text; make a key and compute its digest again"
        )
    quotas = _parse_quotas([field for field in rest[1:] if field != ALL_METRICS])
    buckets = {
        quota: TokenBucket(size=float(quotas[quota]))
        for quota in ("requests", "tokens")
        if quota in quotas
    }
    return ApiKey(
        name,
        digest,
        requests=buckets.get("requests"),
        tokens=buckets.get("tokens"),
        concurrency=quotas.get("concurrency"),
        sees_all_usage=ALL_METRICS in rest[1:],
    )


def _parse_quotas(fields: Sequence[str]) -> dict[str, int]:
    quotas: dict[str, int] = {}
    for field in fields:
        match = QUOTA.fullmatch(field)
        if match is None or not 1 <= int(match[2]) <= MAX_QUOTA:
            raise ValueError(
                "after the digest there may be requests=N, tokens=N and concurrency=N, with N in "
                f"1..{MAX_QUOTA:,} and written without commas, and {ALL_METRICS}"
            )
        if match[1] in quotas:
            raise ValueError(f"{match[1]} is given twice")
        quotas[match[1]] = int(match[2])
    return quotas
