"""Pieces of a document: what a reader gives, in the order in which people read it."""

from collections.abc import Iterable, Iterator

Piece = tuple[int, str]
"""The line or page, counted from 1, on which a text begins, and the text."""


class Cut(ValueError):
    """The pieces that follow are not read. The message is the reason, as the end of a sentence."""


def limit_rows(pieces: Iterable[Piece], max_rows: int) -> Iterator[Piece]:
    """Yield the first `max_rows` pieces, each of which is a row. Raises Cut if there are more."""
    for count, piece in enumerate(pieces):
        if count == max_rows:
            raise rows_left_out(max_rows)
        yield piece


def rows_left_out(max_rows: int) -> Cut:
    """The reason why the rows of a table after the first `max_rows` are not read."""
    return Cut(f"only the first {max_rows:,} rows are read; --max-rows reads more")
