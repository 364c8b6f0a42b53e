"""Passages: the parts of a file that are embedded, retrieved and shown."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from polyvec.chunking import Chunk, split_text
from polyvec.search.documents import Document, read_document
from polyvec.search.files import File
from polyvec.search.lexical import normalise
from polyvec.terminal import shorten
from polyvec.tokenizer import Tokenizer

PASSAGE_TOKENS = 128
"""The longest passage, in tokens: it can be read at a glance in any script, and small models are
trained on texts of this length."""


MAX_HEADING_CHARACTERS = 200
"""Longer headings above a passage are shortened, since every passage repeats them."""


class SplitFile(NamedTuple):
    """A file, its text, and the positions of its passages in the text."""

    file: File
    document: Document
    passages: list[Chunk]


def split_file(folder: Path, file: File, tokenizer: Tokenizer) -> SplitFile:
    """The passages of a file, without the white space around them.

    Raises ValueError with the name of the file and the reason if it has no text.
    """
    try:
        document = read_document(file.raw, file.path)
    except ValueError as error:
        raise ValueError(f"{folder / file.path}: {error}") from None
    passages = []
    for first, last in document.parts():
        part = document.text[first:last]
        for chunk in split_text(
            part,
            PASSAGE_TOKENS,
            size=lambda text: tokenizer.count(text) - 2,
            markdown=document.is_markdown,
        ):
            text = part[chunk.start : chunk.end]
            start = first + chunk.end - len(text.lstrip())
            if text.strip():
                passages.append(Chunk(start, start + len(text.strip()), chunk.headings))
    return SplitFile(file, document, passages)


def texts_with_headings(split: SplitFile) -> Iterator[tuple[str, int]]:
    """The text of each passage below its headings, and the number of characters of the headings.

    A heading that stands in the passage itself is not repeated.
    """
    for passage in split.passages:
        text = split.document.text[passage.start : passage.end]
        titles = [title for title in passage.headings if title not in text]
        if sum(map(len, titles)) > MAX_HEADING_CHARACTERS:
            titles = [shorten(title, MAX_HEADING_CHARACTERS // len(titles)) for title in titles]
        headings = "".join(f"{title}\n" for title in titles)
        yield headings + text, len(headings)


def passage_rows(split: SplitFile) -> Iterator[dict[str, Any]]:
    """The row of the index for each passage of a file, without its vectors."""
    file, document = split.file, split.document
    for passage, (text, titles) in zip(split.passages, texts_with_headings(split), strict=True):
        yield {
            "path": file.path,
            "digest": file.digest,
            "modified": file.modified,
            document.unit: document.locate(passage.start),
            "start": passage.start,
            "end": passage.end,
            "text": text,
            "words": normalise(text),
            "titles": titles,
            "content": content_key(text),
        }


def content_key(text: str) -> int:
    """A 64-bit hash of what is embedded of a passage."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
