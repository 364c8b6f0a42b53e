"""A document is ranked by its best chunk."""

from pathlib import Path

import pytest

from polyvec import Encoder
from polyvec.eval import local_tasks
from polyvec.eval.baselines import model_meta
from polyvec.eval.chunk_search import Chunking, ChunkSearch
from tests.eval.synthetic import retrieval_folder


def test_a_document_scores_what_its_best_chunk_scores(tmp_path: Path, tiny_model: Path) -> None:
    retrieval_folder(tmp_path)
    encoder, (task,) = Encoder.load(tiny_model, device="cpu"), local_tasks(tmp_path, whole=True)
    task.load_data()
    parts = task.dataset["en"]["test"]
    corpus, queries = parts["corpus"].select(range(5)), parts["queries"].select(range(2))
    options = {
        "task_metadata": task.metadata,
        "hf_split": "test",
        "hf_subset": "en",
        "encode_kwargs": {},
        "num_proc": None,
    }
    asked = encoder.encode(queries["text"], task="retrieval.query")
    for cut in (
        Chunking(tokens=None),
        Chunking(tokens=4, late=False),
        Chunking(tokens=4),
        Chunking(tokens=4, window=16),
    ):
        model = ChunkSearch(encoder, model_meta("tiny", "1"), cut)
        model.index(corpus, **options)
        found = model.search(queries, top_k=5, **options)
        for document in corpus:
            chunks = encoder.encode_chunks(
                document["text"],
                task="retrieval.passage",
                chunks=cut.tokens or 10_000,
                late=cut.late,
                window=cut.window,
            ).vectors
            for query, best in zip(queries, (asked @ chunks.T).max(1), strict=True):
                assert found[query["id"]][document["id"]] == pytest.approx(best, abs=1e-5)
