"""The vectors that an index had before an update, for passages whose text is the same.

A passage is looked up by what was embedded: its text below its headings. So a row that is added to
a table, a file that is moved and a folder that is renamed cost only what is new in them.

Axes in this file: N passages.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt64
from lancedb.table import Table

from polyvec.search.passages import content_key
from polyvec.search.vectors import take_rows


class Keys(NamedTuple):
    """The passages of a table, by their keys."""

    contents: Int64[np.ndarray, " N"]
    """The keys (`content_key`), ascending."""

    row_ids: UInt64[np.ndarray, " N"]


class StoredVectors:
    """The vectors of a table, by the texts that were embedded."""

    def __init__(self, table: Table | None, columns: Sequence[str]) -> None:
        """`table` is fixed at a version, so that it keeps its rows during an update.

        `columns` are those of the vectors. Nothing is read before the first text is looked up.
        """
        self._table, self._columns = table, columns

    def find(self, texts: Sequence[str]) -> tuple[Int64[np.ndarray, " N"], pa.Table | None]:
        """The positions of the texts that are stored, and their vectors in this order."""
        if self._table is None or not len(self._keys.contents):
            return np.empty(0, np.int64), None
        contents = np.array([content_key(text) for text in texts], np.int64)
        places = np.searchsorted(self._keys.contents, contents)
        places = places.clip(max=len(self._keys.contents) - 1)
        positions = np.flatnonzero(self._keys.contents[places] == contents)
        if not len(positions):
            return positions, None
        row_ids = self._keys.row_ids[places[positions]]
        rows = take_rows(self._table, row_ids, ["text", *self._columns])
        # Two texts may have the same key.
        stored = rows["text"].to_pylist()
        same = np.array(
            [texts[i] == text for i, text in zip(positions.tolist(), stored, strict=True)], bool
        )
        return positions[same], rows.filter(pa.array(same)).select(self._columns)

    @cached_property
    def _keys(self) -> Keys:
        assert self._table is not None
        # Indexes of earlier versions have no column of keys.
        name = "content" if "content" in self._table.schema.names else "text"
        rows = self._table.search().select([name]).with_row_id(True).limit(None).to_arrow()
        if name == "text":
            contents = np.array([content_key(text) for text in rows[name].to_pylist()], np.int64)
        else:
            contents = rows[name].to_numpy()
        order = np.argsort(contents, kind="stable")
        return Keys(contents[order], rows["_rowid"].to_numpy()[order])
