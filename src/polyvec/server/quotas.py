"""Who may ask, and how much: API keys, their quotas, and the sizes of a single request."""

import hashlib
import hmac
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from polyvec.server.errors import ApiError

WINDOW = 60.0
"""Seconds in which a quota fills again. Measured on the monotonic clock, which nobody sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one request and of the whole server."""

    body_bytes: int = 8_000_000
    """The largest body; 300,000 tokens have a few million bytes in any script."""

    items: int = 2_048
    """Texts in a request."""

    request_tokens: int = 300_000
    """Tokens in a request, after truncation."""

    queue_tokens: int = 1_000_000
    """Tokens that may wait; what comes then is answered 429."""

    requests: int = 1_024
    """Requests in work at once; what comes then is answered 429."""

    inflight_bytes: int = 256_000_000
    """Bytes of the bodies in work at once."""

    read_seconds: float = 30.0
    """Time for a client to send its request."""

    request_seconds: float = 300.0
    """Time for the answer."""

    engine_seconds: float = 30.0
    """Time for every 1,000 tokens of a batch; an engine that takes longer is started again."""

    drain_seconds: float = 30.0
    """Time for the requests in work when the server is told to stop."""


@dataclass(slots=True, kw_only=True)
class Bucket:
    """A quota that fills continuously: `size` a minute, at most `size` saved up."""

    size: float
    left: float = math.nan
    since: float = 0.0

    def refill(self, now: float) -> None:
        """Add what has come since the last call."""
        if math.isnan(self.left):
            self.left, self.since = self.size, now
        # A clock that went back gives nothing, and takes nothing.
        passed = max(0.0, now - self.since)
        self.left = min(self.size, self.left + passed * self.size / WINDOW)
        self.since = now

    def wait(self, amount: int) -> int:
        """Whole seconds until `amount` is there."""
        return max(1, math.ceil((amount - self.left) * WINDOW / self.size))


@dataclass(slots=True, eq=False)
class Client:
    """One API key's holder. Without keys, everybody is the same one, without quotas."""

    name: str
    digest: bytes = b""
    requests: Bucket | None = None
    """Requests a minute."""
    tokens: Bucket | None = None
    """Tokens a minute."""
    concurrency: int | None = None
    """Requests in work at once."""
    running: int = 0

    def admit(self) -> None:
        """Count a request. Raises ApiError 429 if a quota is used up."""
        now = time.monotonic()
        if self.concurrency is not None and self.running >= self.concurrency:
            raise _limited(
                "CONCURRENCY",
                f"Concurrency limit exceeded: {self.running}/{self.concurrency} "
                "concurrent requests",
                1,
            )
        if self.tokens is not None:
            self.tokens.refill(now)
            if self.tokens.left <= 0:
                raise self._no_tokens(1)
        if self.requests is not None:
            self.requests.refill(now)
            if self.requests.left < 1:
                limit = int(self.requests.size)
                raise _limited(
                    "REQUEST",
                    f"Request rate limit exceeded: {limit}/{limit} requests per minute",
                    self.requests.wait(1),
                )
            self.requests.left -= 1

    def charge(self, tokens: int) -> None:
        """Count a request's tokens. Raises ApiError 429 if more are asked for than are left."""
        if self.tokens is None:
            return
        self.tokens.refill(time.monotonic())
        if tokens > self.tokens.left:
            raise self._no_tokens(tokens)
        self.tokens.left -= tokens

    def headers(self) -> dict[str, str]:
        """What is left of the quotas, as the hosted API says it."""
        found = {}
        for name, bucket in (("Requests", self.requests), ("Tokens", self.tokens)):
            if bucket is not None:
                bucket.refill(time.monotonic())
                found[f"X-RateLimit-Remaining-{name}"] = str(max(0, int(bucket.left)))
        return found

    def _no_tokens(self, wanted: int) -> ApiError:
        assert self.tokens is not None
        limit = int(self.tokens.size)
        used = limit - int(self.tokens.left)
        if wanted > limit:
            return ApiError(
                429,
                "RATE_TOKEN_LIMIT_EXCEEDED",
                f"this request has {wanted:,} tokens, and the key's limit is {limit:,} per minute",
            )
        return _limited(
            "TOKEN",
            f"Token rate limit exceeded: {used:,}/{limit:,} tokens per minute",
            self.tokens.wait(wanted),
        )


@dataclass(slots=True)
class Clients:
    """All keys. Only their SHA-256 digests are kept."""

    known: list[Client] = field(default_factory=list)
    anyone: Client = field(default_factory=lambda: Client("anyone"))

    def find(self, authorization: str | None) -> Client:
        """Whose key this is. Raises ApiError 401.

        Every digest is compared in constant time, so that the time tells nothing about keys.
        """
        if not self.known:
            return self.anyone
        if not authorization:
            raise _refused("MISSING_API_KEY", "Authentication required: send a Bearer API key")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused(
                "INVALID_FORMAT", "Invalid authorization format: send 'Authorization: Bearer KEY'"
            )
        # Bytes beyond ASCII arrive as Latin-1; keys are kept as the UTF-8 that clients send.
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        found = None
        for client in self.known:
            if hmac.compare_digest(client.digest, digest):
                found = client
        if found is None:
            raise _refused("INVALID_API_KEY", "Invalid API key")
        return found

    def named(self, name: str) -> Client:
        """The client of a name; one without quotas where its key is no longer known."""
        return next((client for client in self.known if client.name == name), Client(name))


def hash_key(key: str) -> bytes:
    """The digest under which a key is known."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path) -> list[Client]:
    """The keys of a file: a line for each, its name and the SHA-256 of the key in hexadecimal.

    Quotas may follow: `requests=500 tokens=1000000 concurrency=5`, each a minute. Empty lines and
    lines that start with `#` are left out. Raises ValueError naming a bad line.
    """
    clients = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            clients.append(_read_key(words))
        except (ValueError, IndexError):
            raise ValueError(
                f"{path}, line {number}: must be a name, the key's SHA-256 in hexadecimal, and "
                "perhaps requests=N tokens=N concurrency=N"
            ) from None
    if len({client.name for client in clients}) != len(clients):
        raise ValueError(f"{path}: two keys have one name")
    if not clients:
        raise ValueError(f"{path} holds no key")
    return clients


def plain_keys(keys: Iterable[str]) -> list[Client]:
    """Keys as they are, without quotas: hashed at once."""
    return [Client(f"key-{number}", hash_key(key)) for number, key in enumerate(keys, 1)]


def _read_key(words: list[str]) -> Client:
    digest = bytes.fromhex(words[1])
    quotas = {name: int(value) for name, value in (word.split("=") for word in words[2:])}
    if len(digest) != 32 or set(quotas) - {"requests", "tokens", "concurrency"}:
        raise ValueError
    if any(value < 1 for value in quotas.values()):
        raise ValueError
    buckets = {
        name: Bucket(size=float(quotas[name])) for name in ("requests", "tokens") if name in quotas
    }
    return Client(
        words[0],
        digest,
        requests=buckets.get("requests"),
        tokens=buckets.get("tokens"),
        concurrency=quotas.get("concurrency"),
    )


def _limited(kind: str, message: str, wait: int) -> ApiError:
    return ApiError(429, f"RATE_{kind}_LIMIT_EXCEEDED", message, headers={"Retry-After": str(wait)})


def _refused(code: str, message: str) -> ApiError:
    return ApiError(401, f"AUTH_{code}", message, headers={"WWW-Authenticate": "Bearer"})
