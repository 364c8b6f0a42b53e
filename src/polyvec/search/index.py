"""An index of a folder: one row per passage in an embedded LanceDB table.

Each component searches the table. `dense` compares the question's vector with every passage's
vector, exactly. `bm25` looks up the question's words in LanceDB's full-text index. `sparse`, if the
model has that head, compares the token weights of the question and the candidates. `fusion` merges
their rankings into one.

Every change of the table is one atomic commit, and all passages of a file change in one commit. If
an update is killed, the table stays readable and holds the old or the new state of each file; the
next update completes the rest. One process writes at a time, and others can read.

Axes in this file: N passages or candidates, dim the vectors' size.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from polyvec.search.files import list_files, read_file
from polyvec.search.fusion import FusionMethod, Part, choose_weights, fuse, total
from polyvec.search.lexical import WORD_INDEX
from polyvec.search.passages import SplitFile, split_file, texts_with_headings
from polyvec.search.retrieval import (
    MIN_CANDIDATES,
    PASSAGE,
    QUERY,
    Hit,
    find_candidates,
    make_hit,
    question_outputs,
    quote,
    rerank_hits,
    where_sql,
)
from polyvec.search.table_files import DamagedError, ExplainDamage, TableFiles
from polyvec.search.vectors import (
    Quantise,
    Row,
    find_nearest,
    pack_sparse,
    pack_vectors,
    unpack_vectors,
    vector_types,
)

FORMAT_VERSION = 2
"""The version of the columns and of the way texts are split. An index of another one is rebuilt."""

COMMIT_PASSAGES = 1_024
"""Files are committed together until they have this many passages; a kill loses at most these."""

VERSION_RETENTION = timedelta(hours=1)
"""Older versions of the table are kept this long for readers that have just opened them."""

REBUILD_RETENTION = timedelta(seconds=10)
"""The same after the table was rebuilt: its older versions are useless, and may be much larger."""

TABLE = "chunks"
"""The name of the table."""

METADATA_KEY = "polyvec"
"""The key of the table's metadata under which the settings of the index are stored."""

PROBE = "A fixed sentence whose vector tells one model from another: Grüße, 你好, привет."
"""The text by whose vector two models are compared."""

MIN_PROBE_COSINE = 0.99
"""Vectors of two models are compatible if the cosine of their probes is at least this: different
engines round differently."""


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
    """The paths of files that were deleted from the folder, or can no longer be read."""

    skipped: list[str] = field(default_factory=list)
    """One sentence for each file that could not be read, or not as a whole."""

    rebuilt: str = ""
    """The reason why the index was rebuilt; empty if it was not."""


class BusyError(ValueError):
    """Another process is writing the index. Searching it is possible all the time."""


class Index:
    """The passages of a folder's files, with one vector each."""

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        *,
        directory: Path | None = None,
        dim: int | None = None,
        quantise: Quantise | None = None,
    ) -> None:
        """Open the index of `folder`, which is stored in `directory`, by default `folder/.polyvec`.

        `dim` is the size of a vector, one of the model's Matryoshka sizes, and `quantise` the form
        in which it is stored (see `vectors`). By default, an existing index keeps its own; a new
        one has the full size and "float".

        Raises ValueError if the folder does not exist, and if the form is unknown.
        """
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        self.folder = folder
        self.directory = directory or folder / ".polyvec"
        inside = self.directory.resolve().is_relative_to(folder.resolve())
        self.encoder = encoder
        self._files = TableFiles(self.directory / f"{TABLE}.lance")
        try:
            stored = self._settings(self._open())
        except DamagedError:
            stored = {}
        stored_dim = stored.get("dim") if stored.get("dim") in encoder.config.dims else None
        self.dim: int = dim or stored_dim or encoder.config.width
        self.quantise: Quantise = quantise or stored.get("quantise", "float")
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
            # The headings, then the passage. This is embedded, and its words are indexed.
            "text": pa.string(),
            "titles": pa.int32(),
            **vector_types(self.quantise, self.dim),
        }
        if self.sparse:
            columns |= {"tokens": pa.list_(pa.int32()), "weights": pa.list_(pa.float32())}
        settings = {
            "format": FORMAT_VERSION,
            "dim": self.dim,
            "quantise": self.quantise,
            "sparse": self.sparse,
            "probe": self.probe.tolist(),
            # An index inside its folder may be moved with it.
            "folder": "" if inside else str(folder.resolve()),
        }
        self.schema = pa.schema(columns, metadata={METADATA_KEY: json.dumps(settings)})

    def update(self, progress: Callable[[str], object] | None = None) -> Update:
        """Index new and changed files, and remove deleted ones. Rebuild an index that is damaged.

        `progress` is called with the path of each file that is done. Raises BusyError while another
        process writes the index, and ValueError if the index cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.directory / "lock", timeout=0)
            with lock, ExplainDamage(self.directory):
                return self._update(progress or (lambda path: None))
        except filelock.Timeout:
            raise BusyError(f"another process is writing the index {self.directory}") from None
        except OSError as error:
            raise ValueError(
                f"cannot write the index {self.directory} ({error.strerror or error}); "
                "choose another directory with --index"
            ) from None

    def search(
        self,
        question: str,
        *,
        top: int = 5,
        by: FusionMethod = "scores",
        weights: Mapping[str, float] | None = None,
        rerank: int = 0,
        path: str | None = None,
        since: datetime | None = None,
    ) -> list[Hit]:
        """The `top` passages that answer the question best, the best first.

        `weights` are the weights of the components dense, bm25 and sparse; `fusion.WEIGHTS` has
        the defaults. `by` is the method that fuses their rankings (`fusion.fuse`). With `rerank`,
        the first `rerank` passages, but at least `top`, are sorted by MaxSim instead.
        `path` is a pattern of paths in which `*` stands for any characters and `?` for one; `since`
        excludes files that were last written before that time.

        Raises ValueError if the index does not exist, is damaged or was made with another model,
        for an unknown component, and for a component or a rerank whose head the model lacks.
        """
        _check_top(top)
        chosen = choose_weights(weights or {}, self.sparse)
        if rerank and not self.encoder.config.multi_vector_dim:
            raise ValueError("this model has no multi-vector head to rerank with: leave it out")
        limit = max(top, rerank)
        with ExplainDamage(self.directory):
            table = self._open_valid()
            encoded = self.encoder.encode_all(
                [question],
                task=QUERY,
                dim=self.dim,
                outputs=question_outputs(chosen, rerank=bool(rerank)),
                progress=False,
            )
            candidates = find_candidates(
                table,
                self.encoder.tokenizer,
                question,
                encoded,
                quantise=self.quantise,
                components=list(chosen),
                depth=max(MIN_CANDIDATES, 2 * limit),
                where=where_sql(path, since),
            )
        fused = list(fuse(candidates.scores, chosen, by, candidates.max_scores).items())[:limit]
        hits = [make_hit(candidates.rows[key], total(parts), parts) for key, parts in fused]
        if rerank and hits:
            texts = [candidates.rows[key]["text"] for key, _ in fused]
            hits = rerank_hits(self.encoder, encoded, hits, texts)
        return hits[:top]

    def find_similar(
        self, file: Path, *, top: int = 5, path: str | None = None, since: datetime | None = None
    ) -> list[Hit]:
        """The other files that are most similar to `file`, each by its most similar passage.

        `file` may lie outside the folder. Its vector is the mean of its passages' vectors.
        Raises ValueError if it cannot be read or has no words, and in the cases of `search`.
        """
        _check_top(top)
        split = split_file(file.parent, read_file(file.parent, file.name), self.encoder.tokenizer)
        if not split.passages:
            raise ValueError(f"{file} has no words")
        own, root = file.resolve(), self.folder.resolve()
        inside = own.relative_to(root).as_posix() if own.is_relative_to(root) else ""
        where = " AND ".join(filter(None, [where_sql(path, since), f"path != {quote(inside)}"]))
        mean = self._encode([text for text, _ in texts_with_headings(split)]).mean(0)
        mean /= np.linalg.norm(mean).clip(1e-12)
        best: dict[str, Row] = {}
        depth = MIN_CANDIDATES
        with ExplainDamage(self.directory):
            table = self._open_valid()
            # The search deepens until it has enough files, or all passages.
            while True:
                rows = find_nearest(table, mean, quantise=self.quantise, depth=depth, where=where)
                for row in rows:
                    best.setdefault(row["path"], row)
                if len(best) >= top or len(rows) < depth:
                    break
                depth *= 4
        return [
            make_hit(row, row["score"], {"dense": Part(rank, row["score"], row["score"])})
            for rank, row in enumerate(list(best.values())[:top], 1)
        ]

    def _update(self, progress: Callable[[str], object]) -> Update:
        update = Update()
        try:
            table = self._open()
            if table is not None and not self._files.is_closed:
                self._read_all(table)
        except DamagedError:
            # If the files are as they were written, the system has failed, and not the index.
            if self._files.is_closed and not self._files.find_damage():
                raise
            update.rebuilt = "it was damaged"
            self._files.remove()
            table = None
        if table is not None:
            update.rebuilt = self._mismatch(table) or self._form_mismatch(table)
        if table is None or update.rebuilt:
            self._files.begin_change()
            table = self._create(self._requantised(table))
        digests = self._digests(table)
        seen = set[str]()
        pending: list[SplitFile] = []
        for path in list_files(self.folder):
            try:
                file = read_file(self.folder, path)
                split = (
                    None
                    if digests.get(path) == file.digest
                    else split_file(self.folder, file, self.encoder.tokenizer)
                )
            except ValueError as error:
                update.skipped.append(str(error))
                continue
            seen.add(path)
            if split is not None:
                if split.document.cut:
                    update.skipped.append(f"{self.folder / path}: {split.document.cut}")
                # An empty file has no row that could store its digest, so it never counts as new.
                if split.passages or path in digests:
                    pending.append(split)
                    update.changed.append(path)
                if sum(len(split.passages) for split in pending) >= COMMIT_PASSAGES:
                    self._commit(table, pending)
                    pending = []
            progress(path)
        removed = sorted(digests.keys() - seen)
        if pending or removed:
            self._commit(table, pending, removed)
        update.removed = removed
        if update.changed or removed or update.rebuilt or not self._files.is_closed:
            # This also adds the new rows to the full-text index.
            retention = REBUILD_RETENTION if update.rebuilt else VERSION_RETENTION
            self._files.begin_change()
            table.optimize(cleanup_older_than=retention)
            self._files.finish_change()
        update.passages = table.count_rows()
        update.files = len(self._digests(table))
        return update

    def _commit(
        self, table: Table, files: Sequence[SplitFile], removed: Sequence[str] = ()
    ) -> None:
        """Replace all rows of these files in one step."""
        self._files.begin_change()
        paths = ", ".join(quote(path) for path in [*(split.file.path for split in files), *removed])
        (
            table.merge_insert(["path", "start"])
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(f"path IN ({paths})")
            .execute(self._make_rows(files))
        )

    def _make_rows(self, files: Sequence[SplitFile]) -> pa.Table:
        """One row of the table per passage."""
        rows = []
        for split in files:
            file, document = split.file, split.document
            common = {"path": file.path, "digest": file.digest, "modified": file.modified}
            for passage, (text, titles) in zip(
                split.passages, texts_with_headings(split), strict=True
            ):
                location = {document.unit: document.locate(passage.start)}
                span = {"start": passage.start, "end": passage.end}
                rows.append(common | location | span | {"text": text, "titles": titles})
        texts = [row["text"] for row in rows]
        if self.sparse:
            outputs = self.encoder.encode_all(
                texts, task=PASSAGE, dim=self.dim, outputs=["dense", "sparse"], progress=False
            )
            assert outputs.dense is not None and outputs.sparse is not None
            columns = pack_vectors(outputs.dense, self.quantise) | pack_sparse(outputs.sparse)
        else:
            columns = pack_vectors(self._encode(texts), self.quantise)
        plain = [field for field in self.schema if field.name not in columns]
        table = pa.Table.from_pylist(rows, schema=pa.schema(plain))
        for name, column in columns.items():
            table = table.append_column(self.schema.field(name), column)
        return table.select(self.schema.names).cast(self.schema)

    def _encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "N dim"]:
        return self.encoder.encode(texts, task=PASSAGE, dim=self.dim, progress=False)

    def _open(self) -> Table | None:
        """The table, whose files are as they were written. Raises DamagedError if they are not."""
        if not self._files.exists:
            return None
        if damage := self._files.find_damage():
            raise DamagedError(
                f"the index {self.directory} is damaged ({damage}); update it to rebuild it"
            )
        with ExplainDamage(self.directory):
            return lancedb.connect(self.directory).open_table(TABLE)

    def _read_all(self, table: Table) -> None:
        """Raise DamagedError unless every row of the table can be read.

        This verifies an index whose last update was interrupted: files that are not in the list of
        checksums may be incomplete.
        """
        with ExplainDamage(self.directory):
            for _ in table.search().limit(None).to_batches():
                pass

    def _open_valid(self) -> Table:
        """The table. Raises ValueError if it does not exist or does not fit the model."""
        table = self._open()
        if table is None:
            reason = "it does not exist"
        else:
            reason = self._mismatch(table) or self._form_mismatch(table)
        if table is None or reason:
            raise ValueError(f"the index {self.directory} must be updated first: {reason}")
        return table

    def _create(self, rows: pa.RecordBatchReader | None = None) -> Table:
        """Create the table with these rows; an older table is replaced."""
        (self.directory / f"{TABLE}.lance").mkdir(exist_ok=True)
        database = lancedb.connect(self.directory)
        table = database.create_table(TABLE, rows, schema=self.schema, mode="overwrite")
        table.create_index("text", config=WORD_INDEX)
        return table

    def _mismatch(self, table: Table) -> str:
        """The reason why the table cannot be searched with this model; "" if it can."""
        stored = self._settings(table)
        if stored.get("format") != FORMAT_VERSION:
            return "it was made by another version of polyvec"
        own = json.loads((self.schema.metadata or {})[METADATA_KEY.encode()])
        if stored["folder"] != own["folder"]:
            raise ValueError(
                f"{self.directory} is the index of another folder, {stored['folder']}; "
                "choose another directory with --index"
            )
        if stored["dim"] != self.dim:
            return f"its vectors have {stored['dim']} numbers, not {self.dim}"
        if np.dot(stored["probe"], self.probe) < MIN_PROBE_COSINE:
            return "it was made with another model"
        if stored["sparse"] != self.sparse:
            return "it was made before the model's sparse head changed"
        if not table.list_indices():
            return "its creation was interrupted"
        return ""

    def _form_mismatch(self, table: Table) -> str:
        """A sentence if the table's vectors do not have the chosen form, else ""."""
        form = self._settings(table).get("quantise", "float")
        return "" if form == self.quantise else f"its vectors are {form}, not {self.quantise}"

    def _requantised(self, table: Table | None) -> pa.RecordBatchReader | None:
        """The rows of a table with their vectors in the chosen form, if they can be converted."""
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
        """The settings with which the table was made, from its metadata."""
        metadata = {} if table is None else table.schema.metadata or {}
        return json.loads(metadata.get(METADATA_KEY.encode(), b"{}"))

    def _digests(self, table: Table) -> dict[str, str]:
        """The digest of every indexed file."""
        rows = table.search().select(["path", "digest"]).limit(None).to_arrow()
        return dict(zip(rows["path"].to_pylist(), rows["digest"].to_pylist(), strict=True))


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"top is {top}, must be at least 1")
