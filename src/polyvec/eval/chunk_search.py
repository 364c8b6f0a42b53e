"""Retrieval by chunks: the score of a document is the score of its best chunk.

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
from polyvec.eval.task_tables import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """The way in which documents are cut into chunks and embedded."""

    tokens: int | None
    """Tokens of a chunk. None embeds each document whole, up to the model's longest text."""

    late: bool = True
    """Whether a chunk is pooled from the states of its whole window (late chunking, Günther et al.
    2024) or embedded by itself."""

    window: int | None = None
    """Tokens of one forward pass. None is the model's longest text."""


class ChunkSearch:
    """An encoder that implements mteb's `SearchProtocol` over chunks."""

    def __init__(
        self,
        encoder: Encoder,
        meta: ModelMeta,
        chunking: Chunking,
        choose: ChooseAdapter = paper_adapter,
    ) -> None:
        """Search with `encoder`; `choose` returns the adapter for queries and for documents."""
        self.encoder = encoder
        self.mteb_model_meta = meta
        self.chunking = chunking
        self.choose = choose
        self.document_ids: list[str] = []
        self.chunks: Float32[np.ndarray, "S D"] = np.empty((0, encoder.config.width), np.float32)
        self.starts: Int[np.ndarray, " _documents"] = np.empty(0, np.int64)
        """Position of the first chunk of each document."""

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
        """Embed the chunks of all documents."""
        adapter = self.choose(task_metadata, PromptType.document)
        rows: Rows = corpus.to_list()
        self.document_ids = [str(row["id"]) for row in rows]
        texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]
        if self.chunking.tokens is None:
            vectors = [self.encoder.encode(texts, task=adapter, progress=False)]
            self.starts = np.arange(len(texts))
        else:
            vectors = [self._embed_chunks(text, adapter, self.chunking.tokens) for text in texts]
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
        """Return the `top_k` best documents for each query, with their scores."""
        adapter = self.choose(task_metadata, PromptType.query)
        rows: Rows = queries.to_list()
        vectors = self.encoder.encode([row["text"] for row in rows], task=adapter, progress=False)
        scores = np.maximum.reduceat(vectors @ self.chunks.T, self.starts, axis=1)
        results: RetrievalOutputType = {}
        for row, own in zip(rows, scores, strict=True):
            best = np.argsort(-own, kind="stable")[:top_k]
            results[str(row["id"])] = {self.document_ids[i]: float(own[i]) for i in best}
        return results

    def _embed_chunks(
        self, text: str, adapter: str | None, tokens: int
    ) -> Float32[np.ndarray, "_S D"]:
        return self.encoder.encode_chunks(
            text,
            task=adapter,
            chunks=tokens,
            late=self.chunking.late,
            window=self.chunking.window,
            progress=False,
        ).vectors
