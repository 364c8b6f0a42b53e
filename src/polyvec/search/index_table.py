"""The table of an index: its columns, its settings, and whether they fit the model.

A passage is a row. The table is one of LanceDB, whose files `table_files` verifies.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from lancedb.table import Table

from polyvec.encoder import Encoder
from polyvec.search.floors import measure_floors
from polyvec.search.lexical import WORD_INDEX
from polyvec.search.retrieval import PASSAGE
from polyvec.search.stored_vectors import StoredVectors
from polyvec.search.table_files import DamagedError, ExplainDamage, TableFiles
from polyvec.search.vectors import (
    TOKEN_BITS,
    Quantise,
    pack_vectors,
    unpack_vectors,
    vector_types,
)

FORMAT_VERSION = 4
"""The version of the columns and of the way texts are split. An index of another one is rebuilt."""

TABLE = "chunks"
"""The name of the table."""

METADATA_KEY = "polyvec"
"""The key of the table's metadata under which the settings of the index are stored."""

PROBE = "A fixed sentence whose vector tells one model from another: Grüße, 你好, привет."
"""The text by whose vector two models are compared."""

MIN_PROBE_COSINE = 0.99
"""Vectors of two models are compatible if the cosine of their probes is at least this: different
engines round differently."""


class IndexTable:
    """The table in a folder, and the form that its rows should have."""

    def __init__(
        self,
        directory: Path,
        encoder: Encoder,
        *,
        owner: str,
        dim: int | None,
        quantise: Quantise | None,
    ) -> None:
        """`owner` names what is indexed; an index of something else is refused.

        By default, `dim` and `quantise` are those of the existing table.
        """
        self.directory = directory
        self.files = TableFiles(directory / f"{TABLE}.lance")
        try:
            stored = read_settings(self.open())
        except DamagedError:
            stored = {}
        stored_dim = stored.get("dim") if stored.get("dim") in encoder.config.dims else None
        self.dim: int = dim or stored_dim or encoder.config.width
        self.quantise: Quantise = quantise or stored.get("quantise", "float")
        self.sparse = encoder.config.sparse_head
        self.token_size = encoder.config.multi_vector_dim
        self.probe = encoder.encode([PROBE], task=PASSAGE, dim=self.dim)[0]
        is_same_model = (
            stored.get("dim") == self.dim
            and stored["format"] == FORMAT_VERSION
            and _is_near(stored["probe"], self.probe)
        )
        # They are measured once for an index, since that takes longer than a search.
        self.floors: dict[str, float] = (is_same_model and stored.get("floors")) or measure_floors(
            encoder, self.dim
        )
        columns = {
            "path": pa.string(),
            "digest": pa.string(),
            "modified": pa.int64(),
            "line": pa.int32(),
            "page": pa.int32(),
            "start": pa.int32(),
            "end": pa.int32(),
            # The headings, then the passage. This is embedded.
            "text": pa.string(),
            # The same text in the form in which words are compared.
            "words": pa.string(),
            "titles": pa.int32(),
            "content": pa.int64(),
            **vector_types(self.quantise, self.dim),
        }
        if self.sparse:
            columns |= {"tokens": pa.list_(pa.int32()), "weights": pa.list_(pa.float32())}
        if self.token_size:
            columns["token_bits"] = TOKEN_BITS
        self._settings = {
            "format": FORMAT_VERSION,
            "dim": self.dim,
            "quantise": self.quantise,
            "sparse": self.sparse,
            "token_size": self.token_size,
            "probe": self.probe.tolist(),
            "floors": self.floors,
            "folder": owner,
        }
        metadata = {METADATA_KEY: json.dumps(self._settings)}
        self.schema = pa.schema(columns, metadata=metadata)

    @property
    def vector_columns(self) -> list[str]:
        """The names of the columns that hold outputs of the model."""
        sparse = ["tokens", "weights"] if self.sparse else []
        bits = ["token_bits"] if self.token_size else []
        return [*vector_types(self.quantise, self.dim), *sparse, *bits]

    @property
    def outputs(self) -> list[str]:
        """The outputs of the model that the table stores."""
        sparse = ["sparse"] if self.sparse else []
        return ["dense", *sparse, *(["multi_vector"] if self.token_size else [])]

    def open(self) -> Table | None:
        """The table, whose files are as they were written. Raises DamagedError if they are not."""
        if not self.files.exists:
            return None
        if damage := self.files.find_damage():
            raise DamagedError(
                f"the index {self.directory} is damaged ({damage}); update it to rebuild it"
            )
        with ExplainDamage(self.directory):
            return lancedb.connect(self.directory).open_table(TABLE)

    def open_valid(self) -> Table:
        """The table. Raises ValueError if it does not exist or does not fit the model."""
        table = self.open()
        if table is None:
            reason = "it does not exist"
        else:
            reason = self.mismatch(table) or self.form_mismatch(table)
        if table is None or reason:
            raise ValueError(f"the index {self.directory} must be updated first: {reason}")
        return table

    def verify_rows(self, table: Table) -> None:
        """Raise DamagedError unless every row of the table can be read.

        This verifies an index whose last update was interrupted: files that are not in the list of
        checksums may be incomplete.
        """
        with ExplainDamage(self.directory):
            for _ in table.search().limit(None).to_batches():
                pass

    def repair(self) -> Table | None:
        """The newest version of the table that can be read as a whole; newer ones are removed.

        This follows an update that failed or was killed. If a disk is full, LanceDB may commit a
        file that was cut short. Raises DamagedError if there is no such version.
        """
        while True:
            try:
                table = self.open()
                if table is not None:
                    self.verify_rows(table)
                return table
            except DamagedError:
                if self.files.is_closed or not self.files.remove_newest_version():
                    raise

    def create(self, rows: pa.RecordBatchReader | None = None) -> Table:
        """Create the table with these rows; an older table is replaced."""
        (self.directory / f"{TABLE}.lance").mkdir(exist_ok=True)
        database = lancedb.connect(self.directory)
        table = database.create_table(TABLE, rows, schema=self.schema, mode="overwrite")
        table.create_index("words", config=WORD_INDEX)
        return table

    def mismatch(self, table: Table) -> str:
        """The reason why the table cannot be searched with this model; "" if it can."""
        stored = read_settings(table)
        if stored.get("folder", "") != self._settings["folder"]:
            other = stored.get("folder") or "the one around it"
            raise ValueError(
                f"{self.directory} is the index of another folder, {other}; "
                "choose another directory with --index"
            )
        if stored.get("format") != FORMAT_VERSION:
            return "it was made by another version of polyvec"
        if reason := self._vector_mismatch(table):
            return reason
        if not table.list_indices():
            return "its creation was interrupted"
        return ""

    def form_mismatch(self, table: Table) -> str:
        """A sentence if the table's vectors do not have the chosen form, else ""."""
        form = read_settings(table).get("quantise", "float")
        return "" if form == self.quantise else f"its vectors are {form}, not {self.quantise}"

    def _vector_mismatch(self, table: Table) -> str:
        """The reason why the table's vectors are not those of this model; "" if they are."""
        stored = read_settings(table)
        if stored.get("dim") != self.dim:
            return f"its vectors have {stored.get('dim')} numbers, not {self.dim}"
        if not _is_near(stored["probe"], self.probe):
            return "it was made with another model"
        if stored["sparse"] != self.sparse:
            return "it was made before the model's sparse head changed"
        if stored.get("token_size") != self.token_size:
            return "it was made before the model's multi-vector head changed"
        return ""

    def stored_vectors(self, table: Table | None) -> StoredVectors:
        """The vectors that the table has now, if they are as this model makes them."""
        if table is None or self._vector_mismatch(table) or self.form_mismatch(table):
            return StoredVectors(None, ())
        fixed = lancedb.connect(self.directory).open_table(TABLE)
        fixed.checkout(table.version)
        return StoredVectors(fixed, self.vector_columns)

    def requantised_rows(self, table: Table | None) -> pa.RecordBatchReader | None:
        """The rows of a table with their vectors in the chosen form, if they can be converted."""
        if table is None or self.mismatch(table):
            return None
        if read_settings(table).get("quantise", "float") != "float":
            return None

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in table.search().limit(None).to_batches():
                columns = {name: batch[name] for name in batch.schema.names}
                columns |= pack_vectors(unpack_vectors(batch["vector"]), self.quantise)
                arrays = [columns[name] for name in self.schema.names]
                yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

        return pa.RecordBatchReader.from_batches(self.schema, batches())


def _is_near(one: Sequence[float], other: Float32[np.ndarray, " dim"]) -> bool:
    return bool(np.dot(one, other) >= MIN_PROBE_COSINE)


def read_settings(table: Table | None) -> dict[str, Any]:
    """The settings with which the table was made, from its metadata."""
    metadata = {} if table is None else table.schema.metadata or {}
    return json.loads(metadata.get(METADATA_KEY.encode(), b"{}"))
