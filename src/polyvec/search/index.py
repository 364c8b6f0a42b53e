"""An index of a folder: one row a chunk in an embedded LanceDB table, searched exactly.

Every change of the table is one atomic commit, and a file's chunks change in a single one. So a
killed run leaves a table that can be read, whose files are each old or new, and the next run does
what is left. One process writes at a time; others read what is there.

Axes in this file: N chunks, dim the vectors' size.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import filelock
import lancedb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from lancedb.query import LanceVectorQueryBuilder
from lancedb.table import Table

from polyvec.chunking import Chunk, split_text
from polyvec.encoder import Encoder
from polyvec.search.files import File, list_files, read_file

FORMAT = 1
"""Changes with the columns and with how texts are cut; an index of another format is rebuilt."""

CHUNK_TOKENS = 128
"""A passage that can be read at a glance, in any script; small models are trained on such."""

COMMIT_CHUNKS = 1_024
"""Files are committed together until they have so many chunks: this bounds what a kill loses."""

KEEP_VERSIONS = timedelta(hours=1)
"""Older states of the table stay for readers that have just opened them."""

TABLE = "chunks"
VECTOR = 6
"""The vectors' column, the last."""

VISIBLE = re.compile(r"\S")

SPACE = "polyvec"
"""The key under which the table's metadata says which model made the vectors."""

PROBE = "A fixed sentence whose vector tells one model from another: Grüße, 你好, привет."
SAME_MODEL = 0.99
"""Cosine of two models' probes above which their vectors are one space, whatever the engine."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found."""

    path: str
    """Its file, below the folder."""

    line: int
    """The file's line, counted from 1, on which the passage begins."""

    start: int
    end: int
    """Its characters [start, end) in the file's text."""

    text: str
    score: float
    """Cosine of question and passage."""


@dataclass(slots=True)
class Update:
    """What bringing an index up to date did."""

    files: int = 0
    """Files in the index now."""

    chunks: int = 0
    """Passages in the index now."""

    changed: int = 0
    """Files that were new or had another content."""

    removed: int = 0
    """Files of which nothing was left in the folder."""

    skipped: list[str] = field(default_factory=list)
    """One sentence for each file that could not be read."""

    rebuilt: str = ""
    """Why the index was made anew, if it was."""


class Cut(NamedTuple):
    """A file and its chunks."""

    file: File
    chunks: list[Chunk]


class BusyError(ValueError):
    """Another process is writing the index; what is there can be searched."""


class Index:
    """Passages of a folder's files, with a vector each."""

    def __init__(
        self, folder: Path, encoder: Encoder, *, place: Path | None = None, dim: int | None = None
    ) -> None:
        """The index of `folder`, kept in `place` or else in `folder/.polyvec`.

        Raises ValueError if there is no such folder.
        """
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        self.folder = folder
        self.place = place or folder / ".polyvec"
        inside = self.place.resolve().is_relative_to(folder.resolve())
        self.encoder = encoder
        self.dim = dim or encoder.config.width
        self.probe = self._encode([PROBE], "retrieval.passage")[0]
        self.schema = pa.schema(
            {
                "path": pa.string(),
                "digest": pa.string(),
                "line": pa.int32(),
                "start": pa.int32(),
                "end": pa.int32(),
                "text": pa.string(),
                "vector": pa.list_(pa.float32(), self.dim),
            },
            metadata={
                SPACE: json.dumps(
                    {
                        "format": FORMAT,
                        "dim": self.dim,
                        "probe": self.probe.tolist(),
                        # An index inside its folder may move with it.
                        "folder": "" if inside else str(folder.resolve()),
                    }
                )
            },
        )

    def update(self, progress: Callable[[str], object] | None = None) -> Update:
        """Index new and changed files, forget removed ones; `progress` is told each path done.

        Raises BusyError if another process is at it, ValueError if it cannot be written.
        """
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.place / "lock", timeout=0), _explain_damage(self.place):
                return self._update(progress or (lambda path: None))
        except filelock.Timeout:
            raise BusyError(f"another polyvec is writing {self.place}") from None
        except OSError as error:
            raise ValueError(
                f"cannot write the index {self.place} ({error.strerror or error}); "
                "name another place with --index"
            ) from None

    def search(self, question: str, *, top: int = 5) -> list[Hit]:
        """The `top` passages nearest to the question, best first.

        Raises ValueError if there is no index yet, or if another model made it.
        """
        if top < 1:
            raise ValueError(f"top is {top}, must be at least 1")
        with _explain_damage(self.place):
            table = self._open()
            reason = "it does not exist" if table is None else self._mismatch(table)
            if table is None or reason:
                raise ValueError(f"the index {self.place} must be updated first: {reason}")
            vector = self._encode([question], "retrieval.query")[0]
            columns = ["path", "line", "start", "end", "text", "_distance"]
            query = table.search(vector, vector_column_name="vector")
            assert isinstance(query, LanceVectorQueryBuilder)
            found = query.distance_type("dot").limit(top).select(columns).to_arrow()
        # LanceDB's dot distance is 1 - dot.
        return [Hit(score=1 - row.pop("_distance"), **row) for row in found.to_pylist()]

    def _update(self, progress: Callable[[str], object]) -> Update:
        done = Update()
        table = self._open()
        if table is not None:
            done.rebuilt = self._mismatch(table)
        if table is None or done.rebuilt:
            table = self._create()
        known = self._digests(table)
        seen = set[str]()
        waiting: list[Cut] = []
        for path in list_files(self.folder):
            try:
                file = read_file(self.folder, path)
            except ValueError as error:
                done.skipped.append(str(error))
                continue
            seen.add(path)
            if known.get(path) != file.digest:
                cut = self._cut(file)
                # An empty file has no row to keep its digest in, so it is never news.
                if cut.chunks or path in known:
                    waiting.append(cut)
                    done.changed += 1
                if sum(len(cut.chunks) for cut in waiting) >= COMMIT_CHUNKS:
                    self._commit(table, waiting)
                    waiting = []
            progress(path)
        gone = sorted(known.keys() - seen)
        if waiting or gone:
            self._commit(table, waiting, gone)
        done.removed = len(gone)
        if done.changed or gone:
            table.optimize(cleanup_older_than=KEEP_VERSIONS)
        done.chunks = table.count_rows()
        done.files = len(self._digests(table))
        return done

    def _cut(self, file: File) -> Cut:
        chunks = split_text(
            file.text,
            CHUNK_TOKENS,
            size=lambda part: self.encoder.tokenizer.count(part) - 2,
            markdown=file.is_markdown,
        )
        return Cut(file, [chunk for chunk in chunks if file.text[chunk.start : chunk.end].strip()])

    def _commit(self, table: Table, cuts: Sequence[Cut], gone: Sequence[str] = ()) -> None:
        """Let these be the only rows of these files, in one step."""
        paths = [*(cut.file.path for cut in cuts), *gone]
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        (
            table.merge_insert(["path", "start"])
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(f"path IN ({quoted})")
            .execute(self._rows(cuts))
        )

    def _rows(self, cuts: Sequence[Cut]) -> pa.Table:
        """A row a chunk. Headings are embedded with the text below them."""
        rows, titled = [], []
        for file, chunks in cuts:
            lines = _lines(file.text, chunks)
            for chunk, line in zip(chunks, lines, strict=True):
                text = file.text[chunk.start : chunk.end]
                titles = (title for title in chunk.headings if title not in text)
                titled.append("\n".join([*titles, text.strip()]))
                place = {"line": line, "start": chunk.start, "end": chunk.end}
                rows.append({"path": file.path, "digest": file.digest, **place, "text": text})
        vectors = self._encode(titled, "retrieval.passage")
        vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.dim)
        columns = pa.Table.from_pylist(rows, schema=self.schema.remove(VECTOR))
        return columns.append_column(self.schema.field(VECTOR), vector).cast(self.schema)

    def _encode(self, texts: list[str], task: str) -> Float32[np.ndarray, "N dim"]:
        return self.encoder.encode(texts, task=task, dim=self.dim, progress=False)

    def _open(self) -> Table | None:
        if not (self.place / f"{TABLE}.lance" / "_versions").is_dir():
            return None
        return lancedb.connect(self.place).open_table(TABLE)

    def _create(self) -> Table:
        """An empty table, in place of any other."""
        (self.place / f"{TABLE}.lance").mkdir(exist_ok=True)
        database = lancedb.connect(self.place)
        return database.create_table(TABLE, schema=self.schema, mode="overwrite")

    def _mismatch(self, table: Table) -> str:
        """Why the table's vectors cannot be compared with this model's; "" if they can."""
        space = json.loads((table.schema.metadata or {}).get(SPACE.encode(), b"{}"))
        if space.get("format") != FORMAT:
            return "it was made by another version of polyvec"
        mine = json.loads(self.schema.metadata[SPACE.encode()])
        if space["folder"] != mine["folder"]:
            raise ValueError(
                f"{self.place} is the index of another folder, {space['folder']}; "
                "name another place with --index"
            )
        if space["dim"] != self.dim:
            return f"its vectors have {space['dim']} numbers, not {self.dim}"
        if np.dot(space["probe"], self.probe) < SAME_MODEL:
            return "it was made with another model"
        return ""

    def _digests(self, table: Table) -> dict[str, str]:
        """Every indexed file's digest."""
        rows = table.search().select(["path", "digest"]).limit(None).to_arrow()
        return dict(zip(rows["path"].to_pylist(), rows["digest"].to_pylist(), strict=True))


@contextmanager
def _explain_damage(place: Path) -> Iterator[None]:
    """Turn what LanceDB says of lost or broken files into a sentence with a way out."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("lance error"):
            raise
        raise ValueError(
            f"the index {place} is damaged or cannot be written; delete it, and it is made anew "
            f"({str(error)[:120]})"
        ) from error


def _lines(text: str, chunks: Sequence[Chunk]) -> Iterator[int]:
    """The line, counted from 1, of each chunk's first character that is no white space."""
    line, position = 1, 0
    for chunk in chunks:
        shown = VISIBLE.search(text, chunk.start)
        assert shown is not None, "a chunk has a word"
        line += text.count("\n", position, shown.start())
        position = shown.start()
        yield line
