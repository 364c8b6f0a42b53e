"""Commits: how the passages of files enter an index, so that a kill at any moment loses little.

1. `make_blocks` groups the passages of files. A file with at most `BLOCK_PASSAGES` passages stays
   in one block. The passages of a larger file are distributed over several.
2. `commit` replaces the rows of whole files in one atomic step. The rows of a larger file come one
   block after another. Until the last one, they have an unfinished digest: they can be searched,
   and the next update reads the file again, but uses their vectors (`stored_vectors`).
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
from lancedb.table import Table

from polyvec.search.changes import IndexedFile
from polyvec.search.passages import SplitFile, passage_rows
from polyvec.search.retrieval import quote

BLOCK_PASSAGES = 256
"""Passages that are embedded together. More would hardly be faster."""

UNFINISHED = "~"
"""The beginning of the digest of a row whose file is not complete. No digest of a file has it."""


@dataclass(slots=True)
class Block:
    """Passages that are embedded together."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """The rows of the passages, without their vectors."""

    whole: list[str] = field(default_factory=list)
    """The files all of whose passages are in this block."""

    finished: dict[str, str] = field(default_factory=dict)
    """The digests of the larger files whose last passages are in this block."""

    num_bytes: int = 0
    """The number of bytes of the files, and of the parts of files, in this block."""


def make_blocks(files: Iterable[SplitFile]) -> Iterator[Block]:
    """Yield the passages of files in blocks of `BLOCK_PASSAGES`, and at most twice as many."""
    block = Block()
    for split in files:
        rows, count = passage_rows(split), len(split.passages)
        path, digest = split.file.path, split.file.digest
        for first in range(0, max(count, 1), BLOCK_PASSAGES):
            part = list(islice(rows, BLOCK_PASSAGES))
            if count <= BLOCK_PASSAGES:
                block.whole.append(path)
            else:
                part = [row | {"digest": UNFINISHED + digest} for row in part]
                if first + BLOCK_PASSAGES >= count:
                    block.finished[path] = digest
            block.rows += part
            block.num_bytes += len(split.file.raw) * len(part) // max(count, 1)
            if len(block.rows) >= BLOCK_PASSAGES:
                yield block
                block = Block()
    if block.rows or block.whole:
        yield block


def commit(
    table: Table, blocks: Collection[Block], rows: pa.Table, removed: Collection[str] = ()
) -> None:
    """Write the rows of these blocks, with their vectors, and remove those of `removed` files."""
    replaced = [path for block in blocks for path in block.whole] + [*removed]
    merge = table.merge_insert(["path", "start"])
    merge = merge.when_matched_update_all().when_not_matched_insert_all()
    if replaced:
        paths = ", ".join(map(quote, replaced))
        merge = merge.when_not_matched_by_source_delete(f"path IN ({paths})")
    merge.execute(rows)
    for block in blocks:
        for path, digest in block.finished.items():
            own, unfinished = f"path = {quote(path)} AND digest", quote(UNFINISHED + digest)
            # Rows of earlier contents, of which some may be unfinished as well.
            table.delete(f"{own} != {unfinished}")
            table.update(where=f"{own} = {unfinished}", values={"digest": digest})


def read_indexed_files(table: Table) -> dict[str, IndexedFile]:
    """The files of which the table has passages."""
    rows = table.search().select(["path", "digest"]).limit(None).to_arrow()
    groups = rows.group_by(["path", "digest"]).aggregate([("path", "count")]).to_pylist()
    files: dict[str, IndexedFile] = {}
    for group in groups:
        file = IndexedFile(group["digest"], group["path_count"])
        if other := files.get(group["path"]):
            file = IndexedFile(UNFINISHED, other.num_passages + file.num_passages)
        files[group["path"]] = file
    return files
