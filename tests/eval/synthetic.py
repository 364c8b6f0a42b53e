"""Synthetic task folders, and an embedding function whose scores can be computed by hand."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from polyvec.eval import MtebEncoder, Score, Summary, TaskScore, evaluate, local_tasks
from polyvec.eval.baselines import model_meta

WORDS = [
    "ant",
    "bee",
    "cat",
    "dog",
    "elk",
    "fox",
    "gnu",
    "hen",
    "ibis",
    "jay",
    "kiwi",
    "lynx",
    "mole",
    "newt",
    "owl",
    "pig",
]


def embed(texts: list[str], adapter: str | None = None) -> Float32[np.ndarray, "B D"]:
    """The sum of a text's words, each a random vector, at length 1."""
    vectors = {word: np.random.default_rng(i).normal(size=12) for i, word in enumerate(WORDS)}
    sums = np.array([sum(vectors[word] for word in text.split()) for text in texts], np.float32)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def tiny_mteb_encoder(function: Callable = embed) -> MtebEncoder:
    return MtebEncoder(function, model_meta("tiny", "1"))


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=5)) for _ in range(count)]


def task_folder(root: Path, kind: str, **tables: list[dict]) -> Path:
    """A task folder as `local_tasks` reads them, named after its type."""
    path = root / "eval" / kind
    path.mkdir(parents=True, exist_ok=True)
    meta = {"name": kind, "type": kind, "languages": ["en", "de"], "metric": ""}
    (path / "meta.json").write_text(json.dumps(meta))
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet")
    return root


def sts_folder(root: Path) -> Path:
    a, b, noise = random_texts(40, 1), random_texts(40, 2), random.Random(3)
    rows = [
        {"text1": x, "text2": y, "score": noise.random() * 5, "lang": "en" if i < 20 else "de"}
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    return task_folder(root, "sts", pairs=rows)


def retrieval_folder(root: Path) -> Path:
    corpus = [{"id": f"d{i}", "text": t, "title": ""} for i, t in enumerate(random_texts(30, 1))]
    queries = [{"id": f"q{i}", "text": t, "lang": "en"} for i, t in enumerate(random_texts(9, 2))]
    rng = random.Random(4)
    qrels = [
        {"query_id": query["id"], "corpus_id": document["id"], "score": 1}
        for query in queries
        for document in rng.sample(corpus, 3)
    ]
    return task_folder(root, "retrieval", corpus=corpus, queries=queries, qrels=qrels)


def cosines(a: list[str], b: list[str]) -> Float32[np.ndarray, "B C"]:
    return embed(a) @ embed(b).T


def score_task(root: Path, model: MtebEncoder | None = None) -> TaskScore:
    tasks, results = local_tasks(root, whole=True), root / "results"
    summary = evaluate(model or tiny_mteb_encoder(), tasks, results=results, progress=False)
    (task,) = summary.tasks.values()
    for score in (task.score, *task.subsets.values()):
        assert score.low is None or score.low <= score.value <= score.high
    return task


def summary(model: str, value: float, variant: str = "") -> Summary:
    one = Score(value, value - 0.01, value + 0.01)
    tasks = {
        "stsb-dev": TaskScore("STS", "cosine_spearman", "r", 1.0, one, {"de": one, "en": one}),
        "needle-512": TaskScore("Retrieval", "ndcg_at_1", "r", 1.0, one, {"en": one}),
        "topics": TaskScore("Classification", "accuracy", "r", 1.0, one, {"de": one, "sw": one}),
    }
    return Summary(model, variant, "w", "2.26", "2 CPU cores", "2026-01-01", tasks)
