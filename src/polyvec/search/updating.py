"""Updates of an index: new and changed files are embedded, and deleted ones are removed.

1. `changes` compares the folder with the index.
2. The passages of new and changed files are embedded block by block, small files first, and
   committed about once a second (`commits`). Passages whose text the index has already keep their
   vectors (`stored_vectors`).
3. The table is compacted, and the new words are added to its full-text index.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from lancedb.table import Table

from polyvec.encoder import Encoder
from polyvec.search.changes import Changes, IndexedFile, describe_skipped, find_changes
from polyvec.search.commits import Block, commit, make_blocks, read_indexed_files
from polyvec.search.files import read_file
from polyvec.search.index_table import IndexTable
from polyvec.search.passages import SplitFile, split_file
from polyvec.search.retrieval import PASSAGE
from polyvec.search.stored_vectors import StoredVectors
from polyvec.search.table_files import DamagedError
from polyvec.search.vectors import pack_sparse, pack_token_bits, pack_vectors

COMMIT_SECONDS = 1.0
"""Passages that are embedded are committed after this time. A kill loses at most these."""

MAX_COMMIT_SHARE = 0.05
"""Commits come less often if they would take more than this share of the time."""

VERSION_RETENTION = timedelta(hours=1)
"""Older versions of the table are kept this long for readers that have just opened them."""

REBUILD_RETENTION = timedelta(seconds=10)
"""The same after the table was rebuilt: its older versions are useless, and may be much larger."""

Progress = Callable[[int, int], object]
"""A function that is called with the bytes that are done and those of all changed files."""


@dataclass(slots=True)
class Update:
    """The result of updating an index."""

    files: int = 0
    """The number of files in the index after the update."""

    passages: int = 0
    """The number of passages in the index after the update."""

    changed: list[str] = field(default_factory=list)
    """The paths of files that were new or had new contents."""

    removed: list[str] = field(default_factory=list)
    """The paths of files that were deleted from the folder."""

    skipped: list[str] = field(default_factory=list)
    """One sentence for each file that could not be read, or not as a whole. The passages that the
    index has of it stay."""

    doubt: str = ""
    """The reason why passages of files that seem to be gone were kept; empty if none were."""

    resumed: int = 0
    """The number of passages that an interrupted update had left; 0 if none was interrupted."""

    reused: int = 0
    """The number of new rows whose vectors the index had already."""

    rebuilt: str = ""
    """The reason why the index was rebuilt; empty if it was not."""


class Updater:
    """An update of an index. Only one runs at a time; `Index.update` holds the lock."""

    def __init__(self, index: IndexTable, encoder: Encoder, place: Path, root: Path) -> None:
        """`place` is the folder or the file that is indexed; paths are relative to `root`."""
        self._index, self._encoder = index, encoder
        self._place, self._root = place, root
        self._update = Update()

    def run(
        self, *, progress: Progress, forget: Callable[[str], bool], follow_links: bool
    ) -> Update:
        """Update the index. The arguments are those of `Index.update`."""
        update, index = self._update, self._index
        table = self._open_or_remove()
        indexed = {} if table is None else read_indexed_files(table)
        if table is not None:
            update.rebuilt = index.mismatch(table) or index.form_mismatch(table)
            if not update.rebuilt and not index.files.is_closed:
                update.resumed = table.count_rows()
        rows = index.requantised_rows(table) if update.rebuilt else None
        is_new = rows is None and (table is None or bool(update.rebuilt))
        changes = find_changes(
            self._place,
            self._root,
            indexed,
            indexed_at=index.files.changed_at,
            rebuild=is_new,
            follow_links=follow_links,
            progress=progress,
        )
        if changes.doubt:
            is_forgotten = forget(changes.doubt)
            if is_new and not is_forgotten:
                raise ValueError(
                    f"{changes.doubt} The index must be rebuilt, since {update.rebuilt}, "
                    "and would lose them"
                )
            changes.settle(forget=is_forgotten)
            update.doubt = "" if is_forgotten else changes.doubt
        update.skipped = changes.skipped
        stored = index.stored_vectors(table)
        if table is None or update.rebuilt:
            index.files.begin_change()
            table = index.create(rows)
        self._apply(table, changes, {} if is_new else indexed, stored, progress)
        if update.changed or update.removed or update.rebuilt or not index.files.is_closed:
            # This also adds the new rows to the full-text index.
            retention = REBUILD_RETENTION if update.rebuilt else VERSION_RETENTION
            index.files.begin_change()
            table.optimize(cleanup_older_than=retention)
            index.files.finish_change()
        update.passages = table.count_rows()
        update.files = len(read_indexed_files(table))
        return update

    def _open_or_remove(self) -> Table | None:
        """The table; None if there is none, or if it was damaged and therefore removed."""
        files = self._index.files
        try:
            return self._index.open() if files.is_closed else self._index.repair()
        except DamagedError:
            # If the files are as they were written, the system has failed, and not the index.
            if files.is_closed and not files.find_damage():
                raise
            self._update.rebuilt = "it was damaged"
            files.remove()
            return None

    def _apply(
        self,
        table: Table,
        changes: Changes,
        indexed: Mapping[str, IndexedFile],
        stored: StoredVectors,
        progress: Progress,
    ) -> None:
        """Embed and commit the passages of changed files, and remove files that are gone."""
        update, pending = self._update, list[tuple[Block, pa.Table]]()
        done, total = 0, sum(changes.files.values())
        due = time.monotonic() + COMMIT_SECONDS
        for block in make_blocks(self._split_files(changes, indexed)):
            pending.append((block, self._make_rows(block, stored)))
            if time.monotonic() >= due:
                seconds = self._commit(table, pending)
                pending = []
                due = time.monotonic() + max(COMMIT_SECONDS, seconds / MAX_COMMIT_SHARE)
            done += block.num_bytes
            progress(done, total)
        update.changed.sort()
        update.removed = [path for path in changes.gone if path in indexed]
        if update.removed or pending:
            self._commit(table, pending, update.removed)

    def _split_files(
        self, changes: Changes, indexed: Mapping[str, IndexedFile]
    ) -> Iterator[SplitFile]:
        """Yield the new and changed files that can be read, the smallest first."""
        update = self._update
        for path in changes.files:
            try:
                file = read_file(self._root, path)
                split = split_file(self._root, file, self._encoder.tokenizer)
            except ValueError as error:
                update.skipped.append(describe_skipped(error, indexed.get(path)))
                continue
            if split.document.cut:
                update.skipped.append(f"{self._root / path}: {split.document.cut}")
            # An empty file has no row that could store its digest, so it never counts as new.
            if split.passages or path in indexed:
                update.changed.append(path)
                yield split

    def _commit(
        self,
        table: Table,
        pending: Sequence[tuple[Block, pa.Table]],
        removed: Sequence[str] = (),
    ) -> float:
        """Write these blocks. Return the seconds that this took."""
        started = time.monotonic()
        self._index.files.begin_change()
        rows = [self._index.schema.empty_table(), *(rows for _, rows in pending)]
        commit(table, [block for block, _ in pending], pa.concat_tables(rows), removed)
        return time.monotonic() - started

    def _make_rows(self, block: Block, stored: StoredVectors) -> pa.Table:
        """The rows of a block, with vectors that are stored or made."""
        schema, columns = self._index.schema, self._index.vector_columns
        texts = [row["text"] for row in block.rows]
        known, vectors = stored.find(texts)
        self._update.reused += len(known)
        new = np.setdiff1d(np.arange(len(texts)), known)
        parts = [self._make_vectors([texts[i] for i in new])]
        if vectors is not None:
            parts.append(vectors.cast(parts[0].schema))
        order = np.argsort(np.concatenate([new, known]))
        made = pa.concat_tables(parts).take(order)
        plain = [field for field in schema if field.name not in columns]
        table = pa.Table.from_pylist(block.rows, schema=pa.schema(plain))
        for name in columns:
            table = table.append_column(schema.field(name), made[name])
        return table.select(schema.names).cast(schema)

    def _make_vectors(self, texts: Sequence[str]) -> pa.Table:
        """The columns of the texts' vectors, in the form in which the table stores them."""
        index = self._index
        fields = [index.schema.field(name) for name in index.vector_columns]
        if not texts:
            return pa.schema(fields).empty_table()
        outputs = self._encoder.encode_all(
            texts,
            task=PASSAGE,
            dim=index.dim,
            outputs=index.outputs,
            progress=False,
        )
        assert outputs.dense is not None
        columns = pack_vectors(outputs.dense, index.quantise)
        if outputs.sparse is not None:
            columns |= pack_sparse(outputs.sparse)
        if outputs.multi_vector is not None:
            columns |= pack_token_bits(outputs.multi_vector)
        return pa.table([columns[field.name] for field in fields], schema=pa.schema(fields))
