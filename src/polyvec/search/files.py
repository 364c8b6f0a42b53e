"""The text files of a folder."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARKDOWN = (".md", ".markdown")
SUFFIXES = (*MARKDOWN, ".txt", ".text", ".rst")
"""What is searched. Other files are none of our business and are passed over in silence."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was read."""

    path: str
    """Below the folder, with `/` between its parts."""

    text: str
    digest: str
    """Of the file's bytes: another digest, another content."""

    @property
    def is_markdown(self) -> bool:
        """Whether `#` starts a heading."""
        return self.path.lower().endswith(MARKDOWN)


def list_files(folder: Path) -> Iterator[str]:
    """Paths of text files below the folder, sorted; hidden files and folders are left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def read_file(folder: Path, path: str) -> File:
    """The file's text, which is UTF-8, or UTF-16 with a byte order mark.

    Raises ValueError saying why it cannot be read.
    """
    where = folder / path
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path!a}: the name is not UTF-8") from None
    # A pipe or a device would be read for ever.
    if not where.is_file():
        raise ValueError(f"{where}: not a regular file")
    try:
        raw = where.read_bytes()
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from None
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        name = "UTF-16" if wide else "UTF-8"
        raise ValueError(f"{where}: not text (byte {error.start} is not {name})") from None
    if "\0" in text:
        raise ValueError(f"{where}: not text (it has NUL bytes)")
    return File(path, text, hashlib.blake2b(raw, digest_size=16).hexdigest())
