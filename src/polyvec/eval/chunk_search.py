"""Retrieval by chunks: a document scores what its best chunk scores.

Axes in this file: B queries, S chunks of all documents, D width.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.types import (
    CorpusDatasetType,
    EncodeKwargs,
    PromptType,
    QueryDatasetType,
    RetrievalOutputType,
    TopRankedDocumentsType,
)

from polyvec.encoder import Encoder
from polyvec.eval.protocol import ChooseAdapter, paper_adapter
from polyvec.eval.task_folders import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How documents become vectors."""

    tokens: int | None
    """Of a chunk; None keeps a document whole, up to the model's longest text."""

    late: bool = True
    """Whether a chunk has seen the rest of its window (Günther et al. 2024), or only itself."""

    window: int | None = None
    """Tokens that are read together; None for the model's longest text."""


class ChunkSearch:
    """An encoder as mteb's `SearchProtocol` wants it, over chunks."""

    def __init__(
        self,
        encoder: Encoder,
        meta: ModelMeta,
        cut: Cut,
        choose: ChooseAdapter = paper_adapter,
    ) -> None:
        """Cut every document as `cut` says; `choose` says which adapter reads a side."""
        self.encoder = encoder
        self.mteb_model_meta = meta
        self.cut = cut
        self.choose = choose
        self.names: list[str] = []
        self.chunks: Float32[np.ndarray, "S D"] = np.empty((0, encoder.config.width), np.float32)
        self.starts: Int[np.ndarray, " _documents"] = np.empty(0, np.int64)
        """The first chunk of each document."""

    def index(
        self,
        corpus: CorpusDatasetType,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: EncodeKwargs,
        num_proc: int | None,
    ) -> None:
        """Read all documents."""
        adapter = self.choose(task_metadata, PromptType.document)
        rows: Rows = corpus.to_list()
        self.names = [str(row["id"]) for row in rows]
        texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]
        if self.cut.tokens is None:
            vectors = [self.encoder.encode(texts, task=adapter, progress=False)]
            self.starts = np.arange(len(texts))
        else:
            vectors = [self._cut(text, adapter, self.cut.tokens) for text in texts]
            counts = [len(part) for part in vectors]
            self.starts = np.cumsum([0, *counts[:-1]])
        self.chunks = np.concatenate(vectors)

    def search(
        self,
        queries: QueryDatasetType,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: EncodeKwargs,
        top_ranked: TopRankedDocumentsType | None = None,
        num_proc: int | None,
    ) -> RetrievalOutputType:
        """For each query the `top_k` documents, by their best chunks."""
        adapter = self.choose(task_metadata, PromptType.query)
        rows: Rows = queries.to_list()
        asked = self.encoder.encode([row["text"] for row in rows], task=adapter, progress=False)
        scores = np.maximum.reduceat(asked @ self.chunks.T, self.starts, axis=1)
        found: RetrievalOutputType = {}
        for row, line in zip(rows, scores, strict=True):
            best = np.argsort(-line, kind="stable")[:top_k]
            found[str(row["id"])] = {self.names[i]: float(line[i]) for i in best}
        return found

    def _cut(self, text: str, adapter: str | None, tokens: int) -> Float32[np.ndarray, "_S D"]:
        return self.encoder.encode_chunks(
            text,
            task=adapter,
            chunks=tokens,
            late=self.cut.late,
            window=self.cut.window,
            progress=False,
        ).vectors
