"""API keys and their quotas."""

import hashlib
import hmac
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polyvec.server.errors import ApiError, ErrorCode

WINDOW_SECONDS = 60.0
"""Time in which an empty quota fills again, on the monotonic clock, which nobody can set."""

ANYONE = "anyone"
"""Name of the key that stands for all clients of a server without keys."""

FileState = tuple[int, ...] | None
"""Numbers that change when a file is written or replaced; None if there is no file."""

KEY_HEADERS = (b"api-key", b"x-api-key")
"""Headers that hold a key without a scheme, as Azure's clients and many gateways send it."""


@dataclass(slots=True, kw_only=True)
class TokenBucket:
    """A quota that fills continuously: by `size` per minute, up to `size`."""

    size: float
    left: float = math.nan
    updated: float = 0.0
    """Time of the last refill, on the monotonic clock; `left` is NaN before the first one."""

    def refill(self, now: float) -> None:
        """Add what has accrued since the last call."""
        if math.isnan(self.left):
            self.left, self.updated = self.size, now
        # A clock that was set back adds nothing and takes nothing away.
        elapsed = max(0.0, now - self.updated)
        self.left = min(self.size, self.left + elapsed * self.size / WINDOW_SECONDS)
        self.updated = now

    def wait_seconds(self, amount: int) -> int:
        """Whole seconds until `amount` is available."""
        return max(1, math.ceil((amount - self.left) * WINDOW_SECONDS / self.size))


@dataclass(slots=True, eq=False)
class ApiKey:
    """One API key with its quotas. A server without keys has one `ApiKey`, without quotas."""

    name: str
    digest: bytes = b""
    """SHA-256 of the key."""
    requests: TokenBucket | None = None
    """Quota of requests per minute."""
    tokens: TokenBucket | None = None
    """Quota of tokens per minute."""
    concurrency: int | None = None
    """Maximum number of requests in progress."""
    sees_all_usage: bool = False
    """Whether /metrics shows it the usage of all keys: the key of the operator's Prometheus."""
    running: int = 0
    """Requests in progress."""
    num_requests: int = 0
    """Requests admitted since the server started."""
    num_tokens: int = 0
    """Tokens charged since the server started, those of batch jobs included."""

    def admit(self) -> None:
        """Count a request. Raises ApiError 429 if a quota is exceeded."""
        now = time.monotonic()
        if self.concurrency is not None and self.running >= self.concurrency:
            raise _quota_exceeded(
                ErrorCode.RATE_CONCURRENCY_LIMIT_EXCEEDED,
                f"Concurrency limit exceeded: {self.running}/{self.concurrency} "
                "concurrent requests",
                1,
            )
        if self.tokens is not None:
            self.tokens.refill(now)
            if self.tokens.left <= 0:
                raise self._tokens_exceeded(1)
        if self.requests is not None:
            self.requests.refill(now)
            if self.requests.left < 1:
                limit = int(self.requests.size)
                raise _quota_exceeded(
                    ErrorCode.RATE_REQUEST_LIMIT_EXCEEDED,
                    f"Request rate limit exceeded: {limit}/{limit} requests per minute",
                    self.requests.wait_seconds(1),
                )
            self.requests.left -= 1
        self.num_requests += 1

    def charge(self, num_tokens: int) -> None:
        """Count a request's tokens. Raises ApiError 429 if fewer tokens are left."""
        if self.tokens is not None:
            self.tokens.refill(time.monotonic())
            if num_tokens > self.tokens.left:
                raise self._tokens_exceeded(num_tokens)
            self.tokens.left -= num_tokens
        self.num_tokens += num_tokens

    def update(self, other: "ApiKey") -> None:
        """Take over the digest and the quotas of another version; what was used stays used."""
        self.digest = other.digest
        self.concurrency = other.concurrency
        self.sees_all_usage = other.sees_all_usage
        self.requests = _resize(self.requests, other.requests)
        self.tokens = _resize(self.tokens, other.tokens)

    def headers(self) -> dict[str, str]:
        """Response headers with what is left of the quotas, named as in the hosted API."""
        headers = {}
        for name, bucket in (("Requests", self.requests), ("Tokens", self.tokens)):
            if bucket is not None:
                bucket.refill(time.monotonic())
                headers[f"X-RateLimit-Remaining-{name}"] = str(max(0, int(bucket.left)))
        return headers

    def _tokens_exceeded(self, num_tokens: int) -> ApiError:
        assert self.tokens is not None
        limit = int(self.tokens.size)
        used = limit - int(self.tokens.left)
        if num_tokens > limit:
            return ApiError(
                ErrorCode.RATE_TOKEN_LIMIT_EXCEEDED,
                f"this request has {num_tokens:,} tokens, and the key's limit is {limit:,} per "
                "minute",
            )
        return _quota_exceeded(
            ErrorCode.RATE_TOKEN_LIMIT_EXCEEDED,
            f"Token rate limit exceeded: {used:,}/{limit:,} tokens per minute",
            self.tokens.wait_seconds(num_tokens),
        )


@dataclass(slots=True)
class ApiKeys:
    """All API keys. The server keeps only their SHA-256 digests."""

    known: list[ApiKey] = field(default_factory=list)
    anyone: ApiKey = field(default_factory=lambda: ApiKey(ANYONE))
    """Stands for all clients of a server without keys."""
    file: Path | None = None
    """File from which the keys are read again when it changes."""
    file_state: FileState = None
    """State of the file when it was last read."""
    reload_requested: bool = False
    """Set by SIGHUP."""

    @property
    def all(self) -> list[ApiKey]:
        """Every key that requests may have."""
        return self.known or [self.anyone]

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Serve other keys from now on. A key whose name stays keeps what it has used.

        Requests in progress finish with the key that they began with.
        """
        current = {key.name: key for key in self.known}
        known = []
        for key in keys:
            kept = current.get(key.name, key)
            if kept is not key:
                kept.update(key)
            known.append(kept)
        # A server that was started with keys must never become open to all.
        assert known
        self.known = known

    def holds(self, secret: str) -> bool:
        """Whether a text is one of the keys."""
        digest = hash_key(secret)
        return any(key.digest == digest for key in self.known)

    def authenticate(self, headers: Mapping[bytes, bytes]) -> ApiKey:
        """The key that a request's headers hold. Raises ApiError 401.

        `headers` are by lower-case name. `Authorization` comes first, then `KEY_HEADERS`.
        Compares every digest in constant time, so that response times reveal nothing about keys.
        """
        if not self.known:
            return self.anyone
        if authorization := headers.get(b"authorization", b"").strip():
            scheme, _, key = authorization.partition(b" ")
            if scheme.lower() != b"bearer" or not key.strip():
                raise _unauthorised(
                    ErrorCode.AUTH_INVALID_FORMAT,
                    "Invalid authorization format: send 'Authorization: Bearer KEY'",
                )
        else:
            key = next((headers[name] for name in KEY_HEADERS if headers.get(name)), b"")
        if not key.strip():
            raise _unauthorised(
                ErrorCode.AUTH_MISSING_API_KEY, "Authentication required: send a Bearer API key"
            )
        digest = hashlib.sha256(key.strip()).digest()
        match = None
        for known in self.known:
            if hmac.compare_digest(known.digest, digest):
                match = known
        if match is None:
            raise _unauthorised(ErrorCode.AUTH_INVALID_API_KEY, "Invalid API key")
        return match

    def find(self, name: str) -> ApiKey | None:
        """The key of a name. None if it does not exist, for example because it was removed."""
        known = self.known or [self.anyone]
        return next((key for key in known if key.name == name), None)


def hash_key(key: str) -> bytes:
    """The digest that the server keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def hash_keys(keys: Iterable[str]) -> list[ApiKey]:
    """Keys in plain text, hashed at once. They are named key-1, key-2, ... and have no quotas."""
    return [ApiKey(f"key-{number}", hash_key(key)) for number, key in enumerate(keys, 1)]


def _resize(current: TokenBucket | None, new: TokenBucket | None) -> TokenBucket | None:
    """The bucket with the size of `new`, less what was used of the current one."""
    if current is None or new is None:
        return new
    if not math.isnan(current.left):
        current.refill(time.monotonic())
        current.left += new.size - current.size
    current.size = new.size
    return current


def _quota_exceeded(code: ErrorCode, message: str, wait: int) -> ApiError:
    return ApiError(code, message, headers={"Retry-After": str(wait)})


def _unauthorised(code: ErrorCode, message: str) -> ApiError:
    return ApiError(code, message, headers={"WWW-Authenticate": "Bearer"})
