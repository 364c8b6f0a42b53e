"""An index of a folder: one row a chunk in an embedded LanceDB table.

A question is put to each component: `dense` compares its vector with every passage's, exactly;
`bm25` looks its words up in LanceDB's full-text index; and `sparse`, where the model has that
head, weighs the words that question and candidates share. `fusion` makes one ranking of theirs.

Every change of the table is one atomic commit, and a file's chunks change in a single one. So a
killed run leaves a table that can be read, whose files are each old or new, and the next run does
what is left. One process writes at a time; others read what is there.

Axes in this file: N chunks or candidates, dim the vectors' size.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import filelock
import lancedb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from lancedb.table import Table

from polyvec.encoder import Encoder
from polyvec.search import retrieval
from polyvec.search.files import list_files, read_file
from polyvec.search.fusion import By, Part, fuse, total
from polyvec.search.lexical import WORDS
from polyvec.search.passages import Cut, cut_file, titled_texts
from polyvec.search.retrieval import (
    CANDIDATES,
    PASSAGE,
    QUERY,
    Hit,
    choose_weights,
    find_candidates,
    make_hit,
    quote,
    where_sql,
)
from polyvec.search.vectors import (
    Quantise,
    Row,
    find_nearest,
    pack_vectors,
    unpack_vectors,
    vector_types,
)

FORMAT = 2
"""Changes with the columns and with how texts are cut; an index of another format is rebuilt."""

COMMIT_CHUNKS = 1_024
"""Files are committed together until they have so many chunks: this bounds what a kill loses."""

KEEP_VERSIONS = timedelta(hours=1)
"""Older states of the table stay for readers that have just opened them."""

KEEP_MOMENTS = timedelta(seconds=10)
"""After a table was made anew, its older states are of no use, and may be much larger."""

TABLE = "chunks"

SPACE = "polyvec"
"""The key under which the table's metadata says which model made the vectors."""

PROBE = "A fixed sentence whose vector tells one model from another: Grüße, 你好, привет."
SAME_MODEL = 0.99
"""Cosine of two models' probes above which their vectors are one space, whatever the engine."""


@dataclass(slots=True)
class Update:
    """What bringing an index up to date did."""

    files: int = 0
    """Files in the index now."""

    chunks: int = 0
    """Passages in the index now."""

    changed: list[str] = field(default_factory=list)
    """Paths of files that were new or had another content."""

    removed: list[str] = field(default_factory=list)
    """Paths of files that are no longer in the folder, or can no longer be read."""

    skipped: list[str] = field(default_factory=list)
    """One sentence for each file that could not be read."""

    rebuilt: str = ""
    """Why the index was made anew, if it was."""


class BusyError(ValueError):
    """Another process is writing the index; what is there can be searched."""


class Index:
    """Passages of a folder's files, with a vector each."""

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        *,
        place: Path | None = None,
        dim: int | None = None,
        quantise: Quantise | None = None,
    ) -> None:
        """The index of `folder`, kept in `place` or else in `folder/.polyvec`.

        `dim` and `quantise` say how many numbers a vector has, one of the model's Matryoshka
        sizes, and in which form they are kept, see `vectors`. They stay as they are in an index
        that there is, and are all of the model's numbers and "float" in a new one.

        Raises ValueError if there is no such folder, for a form that is none, and if the index
        is damaged.
        """
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        self.folder = folder
        self.place = place or folder / ".polyvec"
        inside = self.place.resolve().is_relative_to(folder.resolve())
        self.encoder = encoder
        kept = self._settings(self._open())
        kept_dim = kept.get("dim") if kept.get("dim") in encoder.config.dims else None
        self.dim: int = dim or kept_dim or encoder.config.width
        self.quantise: Quantise = quantise or kept.get("quantise", "float")
        self.sparse = encoder.config.sparse_head
        self.probe = encoder.encode([PROBE], task=PASSAGE, dim=self.dim)[0]
        columns = {
            "path": pa.string(),
            "digest": pa.string(),
            "modified": pa.int64(),
            "line": pa.int32(),
            "page": pa.int32(),
            "start": pa.int32(),
            "end": pa.int32(),
            # Headings, then the passage: what is embedded, and whose words are indexed.
            "text": pa.string(),
            "titles": pa.int32(),
            **vector_types(self.quantise, self.dim),
        }
        if self.sparse:
            columns |= {"tokens": pa.list_(pa.int32()), "weights": pa.list_(pa.float32())}
        space = {
            "format": FORMAT,
            "dim": self.dim,
            "quantise": self.quantise,
            "sparse": self.sparse,
            "probe": self.probe.tolist(),
            # An index inside its folder may move with it.
            "folder": "" if inside else str(folder.resolve()),
        }
        self.schema = pa.schema(columns, metadata={SPACE: json.dumps(space)})

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

    def search(
        self,
        question: str,
        *,
        top: int = 5,
        by: By = "scores",
        weights: Mapping[str, float] | None = None,
        rerank: int = 0,
        path: str | None = None,
        since: datetime | None = None,
    ) -> list[Hit]:
        """The `top` passages that answer the question best, best first.

        `weights` say how much each of dense, bm25 and sparse counts, where it is not as in
        `retrieval.WEIGHTS`; `by` how they are put together, see `fusion.fuse`. If there is a
        `rerank`, so many first passages, and at least `top`, are put in order by MaxSim instead.
        `path` is a pattern of paths, in which `*` stands for any characters and `?` for one;
        `since` leaves out files written earlier.

        Raises ValueError if there is no index yet, or if another model made it, for a component
        that is none, and for one whose head the model lacks.
        """
        _check_top(top)
        chosen = choose_weights(weights or {}, self.sparse)
        if rerank and not self.encoder.config.multi_vector_dim:
            raise ValueError("this model has no multi-vector head to rerank with: leave it out")
        wanted = max(top, rerank)
        with _explain_damage(self.place):
            found = find_candidates(
                self._ready(),
                self.encoder,
                question,
                vector=self._encode([question], QUERY)[0],
                quantise=self.quantise,
                names=list(chosen),
                depth=max(CANDIDATES, 2 * wanted),
                where=where_sql(path, since),
            )
        fused = list(fuse(found.scores, chosen, by, found.wholes).items())[:wanted]
        hits = [make_hit(found.rows[key], total(parts), parts) for key, parts in fused]
        if rerank and hits:
            titled = [found.rows[key]["text"] for key, _ in fused]
            hits = retrieval.rerank(self.encoder, question, hits, titled)
        return hits[:top]

    def near(
        self, file: Path, *, top: int = 5, path: str | None = None, since: datetime | None = None
    ) -> list[Hit]:
        """The other files most like this one, each by its passage that is: best first.

        `file` need not be in the folder. It is compared by the mean of its passages' vectors.
        Raises ValueError if it cannot be read or has no words, and as `search` does.
        """
        _check_top(top)
        cut = cut_file(file.parent, read_file(file.parent, file.name), self.encoder.tokenizer)
        if not cut.chunks:
            raise ValueError(f"{file} has no words")
        own, root = file.resolve(), self.folder.resolve()
        inside = own.relative_to(root).as_posix() if own.is_relative_to(root) else ""
        where = " AND ".join(filter(None, [where_sql(path, since), f"path != {quote(inside)}"]))
        mean = self._encode([titled for titled, _ in titled_texts(cut)], PASSAGE).mean(0)
        mean /= np.linalg.norm(mean).clip(1e-12)
        best: dict[str, Row] = {}
        depth = CANDIDATES
        with _explain_damage(self.place):
            table = self._ready()
            # Until enough files are among the nearest passages, or all passages are.
            while True:
                found = find_nearest(table, mean, quantise=self.quantise, depth=depth, where=where)
                for row in found:
                    best.setdefault(row["path"], row)
                if len(best) >= top or len(found) < depth:
                    break
                depth *= 4
        return [
            make_hit(row, row["score"], {"dense": Part(rank, row["score"], row["score"])})
            for rank, row in enumerate(list(best.values())[:top], 1)
        ]

    def _update(self, progress: Callable[[str], object]) -> Update:
        done = Update()
        table = self._open()
        if table is not None:
            done.rebuilt = self._mismatch(table) or self._other_form(table)
        if table is None or done.rebuilt:
            table = self._create(self._requantised(table))
        known = self._digests(table)
        seen = set[str]()
        waiting: list[Cut] = []
        for path in list_files(self.folder):
            try:
                file = read_file(self.folder, path)
                cut = (
                    None
                    if known.get(path) == file.digest
                    else cut_file(self.folder, file, self.encoder.tokenizer)
                )
            except ValueError as error:
                done.skipped.append(str(error))
                continue
            seen.add(path)
            if cut is not None:
                # An empty file has no row to keep its digest in, so it is never news.
                if cut.chunks or path in known:
                    waiting.append(cut)
                    done.changed.append(path)
                if sum(len(cut.chunks) for cut in waiting) >= COMMIT_CHUNKS:
                    self._commit(table, waiting)
                    waiting = []
            progress(path)
        gone = sorted(known.keys() - seen)
        if waiting or gone:
            self._commit(table, waiting, gone)
        done.removed = gone
        if done.changed or gone or done.rebuilt:
            # It also takes the new rows into the index of words.
            table.optimize(cleanup_older_than=KEEP_MOMENTS if done.rebuilt else KEEP_VERSIONS)
        done.chunks = table.count_rows()
        done.files = len(self._digests(table))
        return done

    def _commit(self, table: Table, cuts: Sequence[Cut], gone: Sequence[str] = ()) -> None:
        """Let these be the only rows of these files, in one step."""
        paths = ", ".join(quote(path) for path in [*(cut.file.path for cut in cuts), *gone])
        (
            table.merge_insert(["path", "start"])
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(f"path IN ({paths})")
            .execute(self._rows(cuts))
        )

    def _rows(self, cuts: Sequence[Cut]) -> pa.Table:
        """A row a chunk."""
        rows = []
        for cut in cuts:
            file, document = cut.file, cut.document
            fixed = {"path": file.path, "digest": file.digest, "modified": file.modified}
            for chunk, (text, titles) in zip(cut.chunks, titled_texts(cut), strict=True):
                place = {document.unit: document.find(chunk.start)}
                span = {"start": chunk.start, "end": chunk.end}
                rows.append(fixed | place | span | {"text": text, "titles": titles})
        texts = [row["text"] for row in rows]
        columns: dict[str, pa.Array] = {}
        if self.sparse:
            both = self.encoder.encode_all(
                texts, task=PASSAGE, dim=self.dim, outputs=["dense", "sparse"], progress=False
            )
            assert both.dense is not None and both.sparse is not None
            vectors = both.dense
            ends = pa.array(both.sparse.indptr.astype(np.int32))
            columns["tokens"] = pa.ListArray.from_arrays(ends, pa.array(both.sparse.indices))
            columns["weights"] = pa.ListArray.from_arrays(ends, pa.array(both.sparse.data))
        else:
            vectors = self._encode(texts, PASSAGE)
        columns |= pack_vectors(vectors, self.quantise)
        plain = [field for field in self.schema if field.name not in columns]
        table = pa.Table.from_pylist(rows, schema=pa.schema(plain))
        for name, column in columns.items():
            table = table.append_column(self.schema.field(name), column)
        return table.select(self.schema.names).cast(self.schema)

    def _encode(self, texts: list[str], task: str) -> Float32[np.ndarray, "N dim"]:
        return self.encoder.encode(texts, task=task, dim=self.dim, progress=False)

    def _open(self) -> Table | None:
        if not (self.place / f"{TABLE}.lance" / "_versions").is_dir():
            return None
        with _explain_damage(self.place):
            return lancedb.connect(self.place).open_table(TABLE)

    def _ready(self) -> Table:
        """The table, to be searched."""
        table = self._open()
        if table is None:
            reason = "it does not exist"
        else:
            reason = self._mismatch(table) or self._other_form(table)
        if table is None or reason:
            raise ValueError(f"the index {self.place} must be updated first: {reason}")
        return table

    def _create(self, rows: pa.RecordBatchReader | None = None) -> Table:
        """A table of these rows, in place of any other."""
        (self.place / f"{TABLE}.lance").mkdir(exist_ok=True)
        database = lancedb.connect(self.place)
        table = database.create_table(TABLE, rows, schema=self.schema, mode="overwrite")
        table.create_index("text", config=WORDS)
        return table

    def _mismatch(self, table: Table) -> str:
        """Why the table cannot be searched with this model; "" if it can."""
        space = self._settings(table)
        if space.get("format") != FORMAT:
            return "it was made by another version of polyvec"
        mine = json.loads((self.schema.metadata or {})[SPACE.encode()])
        if space["folder"] != mine["folder"]:
            raise ValueError(
                f"{self.place} is the index of another folder, {space['folder']}; "
                "name another place with --index"
            )
        if space["dim"] != self.dim:
            return f"its vectors have {space['dim']} numbers, not {self.dim}"
        if np.dot(space["probe"], self.probe) < SAME_MODEL:
            return "it was made with another model"
        if space["sparse"] != self.sparse:
            return "it was made before the model's sparse head changed"
        if not table.list_indices():
            return "making it was broken off at the start"
        return ""

    def _other_form(self, table: Table) -> str:
        """How the form of the table's vectors is another than is wanted; "" if it is not."""
        form = self._settings(table).get("quantise", "float")
        return "" if form == self.quantise else f"its vectors are {form}, not {self.quantise}"

    def _requantised(self, table: Table | None) -> pa.RecordBatchReader | None:
        """A table's rows with vectors in the form wanted, if its vectors can be made so."""
        if table is None or self._mismatch(table):
            return None
        if self._settings(table).get("quantise", "float") != "float":
            return None

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in table.search().limit(None).to_batches():
                columns = {name: batch[name] for name in batch.schema.names}
                columns |= pack_vectors(unpack_vectors(batch["vector"]), self.quantise)
                arrays = [columns[name] for name in self.schema.names]
                yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

        return pa.RecordBatchReader.from_batches(self.schema, batches())

    @staticmethod
    def _settings(table: Table | None) -> dict[str, Any]:
        """What the table's metadata says of how it was made."""
        metadata = {} if table is None else table.schema.metadata or {}
        return json.loads(metadata.get(SPACE.encode(), b"{}"))

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


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"top is {top}, must be at least 1")
