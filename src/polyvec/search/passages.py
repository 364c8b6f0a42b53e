"""A file's passages: what is embedded, found and shown."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from polyvec.chunking import Chunk, split_text
from polyvec.search.documents import Document, read_document
from polyvec.search.files import File
from polyvec.tokenizer import Tokenizer

CHUNK_TOKENS = 128
"""A passage that can be read at a glance, in any script; small models are trained on such."""


class Cut(NamedTuple):
    """A file, its text, and where in it the passages are."""

    file: File
    document: Document
    chunks: list[Chunk]


def cut_file(folder: Path, file: File, tokenizer: Tokenizer) -> Cut:
    """The file's passages, without the white space around them.

    Raises ValueError naming the file and saying why it has no text.
    """
    try:
        document = read_document(file.raw, file.path)
    except ValueError as error:
        raise ValueError(f"{folder / file.path}: {error}") from None
    found = []
    for first, last in document.parts():
        part = document.text[first:last]
        for chunk in split_text(
            part,
            CHUNK_TOKENS,
            size=lambda text: tokenizer.count(text) - 2,
            markdown=document.is_markdown,
        ):
            text = part[chunk.start : chunk.end]
            start = first + chunk.end - len(text.lstrip())
            if text.strip():
                found.append(Chunk(start, start + len(text.strip()), chunk.headings))
    return Cut(file, document, found)


def titled_texts(cut: Cut) -> Iterator[tuple[str, int]]:
    """Each chunk's text below the headings that it lacks, and how many characters these take."""
    for chunk in cut.chunks:
        text = cut.document.text[chunk.start : chunk.end]
        titles = "".join(f"{title}\n" for title in chunk.headings if title not in text)
        yield titles + text, len(titles)
