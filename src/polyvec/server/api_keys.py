"""API keys and their quotas."""

import hashlib
import hmac
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from polyvec.server.errors import ApiError, ErrorCode

WINDOW_SECONDS = 60.0
"""Time in which an empty quota fills again, on the monotonic clock, which nobody can set."""


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
    running: int = 0
    """Requests in progress."""

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

    def charge(self, num_tokens: int) -> None:
        """Count a request's tokens. Raises ApiError 429 if fewer tokens are left."""
        if self.tokens is None:
            return
        self.tokens.refill(time.monotonic())
        if num_tokens > self.tokens.left:
            raise self._tokens_exceeded(num_tokens)
        self.tokens.left -= num_tokens

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
    anyone: ApiKey = field(default_factory=lambda: ApiKey("anyone"))
    """Stands for all clients of a server without keys."""

    def authenticate(self, authorization: str | None) -> ApiKey:
        """The key that an Authorization header holds. Raises ApiError 401.

        Compares every digest in constant time, so that response times reveal nothing about keys.
        """
        if not self.known:
            return self.anyone
        if not authorization:
            raise _unauthorised(
                ErrorCode.AUTH_MISSING_API_KEY, "Authentication required: send a Bearer API key"
            )
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorised(
                ErrorCode.AUTH_INVALID_FORMAT,
                "Invalid authorization format: send 'Authorization: Bearer KEY'",
            )
        # Bytes beyond ASCII arrive as Latin-1; keys are kept as the UTF-8 that clients send.
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
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


def read_key_file(path: Path) -> list[ApiKey]:
    """The keys of a file. Each line holds a name and the SHA-256 of the key in hexadecimal.

    Quotas per minute may follow: `requests=500 tokens=1000000 concurrency=5`. Empty lines and
    lines that start with `#` are skipped. Raises ValueError that names a wrong line.
    """
    keys = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            keys.append(_parse_key(fields))
        except (ValueError, IndexError):
            raise ValueError(
                f"{path}, line {number}: must be a name, the key's SHA-256 in hexadecimal, and "
                "optionally requests=N tokens=N concurrency=N"
            ) from None
    if len({key.name for key in keys}) != len(keys):
        raise ValueError(f"{path}: two keys have the same name")
    if not keys:
        raise ValueError(f"{path} contains no key")
    return keys


def hash_keys(keys: Iterable[str]) -> list[ApiKey]:
    """Keys in plain text, hashed at once. They are named key-1, key-2, ... and have no quotas."""
    return [ApiKey(f"key-{number}", hash_key(key)) for number, key in enumerate(keys, 1)]


def _parse_key(fields: list[str]) -> ApiKey:
    digest = bytes.fromhex(fields[1])
    quotas = {name: int(value) for name, value in (field.split("=") for field in fields[2:])}
    if len(digest) != 32 or set(quotas) - {"requests", "tokens", "concurrency"}:
        raise ValueError
    if any(value < 1 for value in quotas.values()):
        raise ValueError
    buckets = {
        name: TokenBucket(size=float(quotas[name]))
        for name in ("requests", "tokens")
        if name in quotas
    }
    return ApiKey(
        fields[0],
        digest,
        requests=buckets.get("requests"),
        tokens=buckets.get("tokens"),
        concurrency=quotas.get("concurrency"),
    )


def _quota_exceeded(code: ErrorCode, message: str, wait: int) -> ApiError:
    return ApiError(code, message, headers={"Retry-After": str(wait)})


def _unauthorised(code: ErrorCode, message: str) -> ApiError:
    return ApiError(code, message, headers={"WWW-Authenticate": "Bearer"})
