"""Packed files, which are unpacked only as far as their size allows."""

import gzip
import io
import zipfile
import zlib

MAX_UNPACKED_BYTES = 256 * 2**20
"""A file that unpacks to more is not read."""

MAX_RATIO = 200
"""A file may unpack to this many times its size, and to `SPARE_BYTES` more. Logs and tables of
numbers unpack to about fifty times their size, and a bomb to a thousand times."""

SPARE_BYTES = 2**20

BROKEN_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""The errors that `zipfile` raises for damaged, unusual and encrypted files."""


def gunzip(raw: bytes) -> bytes:
    """The bytes that were packed by gzip. Raises ValueError if they are damaged or too many."""
    limit = _unpacked_limit(len(raw))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            unpacked = file.read(limit + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"not a whole gzip file ({error})") from None
    if len(unpacked) > limit:
        raise _too_large(limit)
    return unpacked


class Archive:
    """The members of a ZIP file that does not unpack to too much."""

    def __init__(self, raw: bytes) -> None:
        """Raises ValueError if it is no ZIP file, or would unpack to too many bytes."""
        try:
            self._file = zipfile.ZipFile(io.BytesIO(raw))
        except (*BROKEN_ZIP_ERRORS, ValueError, LookupError) as error:
            raise ValueError(f"it is damaged or encrypted ({error})") from None
        # No member is unpacked beyond its stated size, so the sum is a bound even if it is a lie.
        self.size = sum(member.file_size for member in self._file.infolist())
        """The number of bytes of all members."""
        limit = _unpacked_limit(len(raw))
        if self.size > limit:
            raise _too_large(limit)
        self.names = self._file.namelist()

    def read(self, name: str) -> bytes:
        """A member. Raises ValueError if it is missing, damaged or encrypted."""
        try:
            return self._file.read(name)
        except KeyError:
            raise ValueError(f"it has no part {name}") from None
        except BROKEN_ZIP_ERRORS as error:
            raise ValueError(f"its part {name} is damaged or encrypted ({error})") from None


def _unpacked_limit(num_bytes: int) -> int:
    return min(MAX_UNPACKED_BYTES, MAX_RATIO * num_bytes + SPARE_BYTES)


def _too_large(limit: int) -> ValueError:
    return ValueError(
        f"it unpacks to more than {limit:,} bytes (a file may unpack to {MAX_RATIO} times its size "
        f"and at most to {MAX_UNPACKED_BYTES >> 20} MiB)"
    )
