"""nDCG@10 of each component of `polyvec search` alone, and of their combinations.

    python -m benchmarks.hybrid --data DATA                                      # half an hour
    python -m benchmarks.hybrid --data DATA --queries 20 --tasks tydiqa-dev-sw   # a trial

It scores the bundled model on public retrieval tasks (DATA/eval). Every document is one passage of
a table like that of an index, and queries go through the code of `polyvec search`: its candidates,
its fusion and its MaxSim. The adapters of all tasks are therefore those of a search.

    dense, bm25, sparse   one component; sparse scores the candidates of the other two
    search                dense, maxsim and bm25 by scores, with the weights of `polyvec search`
    even                  dense and bm25 by scores, with equal weights
    ranks                 dense and bm25 by ranks, with equal weights (reciprocal rank fusion)
    all                   `search`, and sparse with a weight of 0.2
    maxsim                the first 20 results of `search`, sorted by MaxSim

Two more tasks search MLQA's passages in seven languages together: with questions in the language of
the passage (`mlqa-same`), and in another language (`mlqa-cross`), in which common words are
misleading. The translations of the right passage do not count. The bundled model was trained on a
part of MLQA, so only the columns can be compared there.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from mteb.abstasks import AbsTask

from benchmarks.report import describe_machine, table
from polyvec import Encoder, Outputs
from polyvec.data_folder import data_folder
from polyvec.eval.task_folders import local_tasks
from polyvec.reranking import rank_candidates, score_candidates
from polyvec.search.fusion import HEADS, WEIGHTS, FusionMethod, choose_weights, fuse
from polyvec.search.lexical import WORD_INDEX, normalise
from polyvec.search.retrieval import (
    MIN_CANDIDATES,
    PASSAGE,
    QUERY,
    find_candidates,
)
from polyvec.search.vectors import pack_sparse, pack_token_bits, pack_vectors

TASKS = ("tydiqa-dev-*", "needle-256", "needle-512", "passkey-256", "passkey-512")
"""Tasks with short documents, as the passages of a search are short."""

RERANKED = 20

FUSIONS: dict[str, tuple[dict[str, float], FusionMethod]] = {
    "dense": ({"dense": 1.0}, "scores"),
    "bm25": ({"bm25": 1.0}, "scores"),
    "sparse": ({"sparse": 1.0}, "scores"),
    "search": (choose_weights({}, ["sparse", "multi-vector"]), "scores"),
    "even": ({"dense": 1.0, "bm25": 1.0}, "scores"),
    "ranks": ({"dense": 1.0, "bm25": 1.0}, "ranks"),
    "all": (WEIGHTS | {"sparse": 0.2}, "scores"),
}


class SearchTask(NamedTuple):
    """Questions, and the documents that answer them."""

    name: str
    documents: Mapping[str, str]
    questions: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, Collection[str]]
    """Documents that are ignored in the ranking of a question."""


def main(
    tasks: tuple[str, ...] = TASKS,
    queries: int | None = None,
    whole: bool = False,
    model: str | None = None,
    data: Path | None = None,
    scores_json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Score all combinations, and print a Markdown table.

    Args:
        tasks: Names or types of task folders.
        queries: Largest number of queries per task; by default all.
        whole: Keep all documents of large corpora.
        model: A folder or a hub name; by default the bundled model.
        data: The folder that contains `eval/`; by default the folder in `POLYVEC_DATA`.
        scores_json: A JSON file for the scores.

    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    folder = data_folder(data)
    encoder = Encoder.load(model)
    selected = local_tasks(folder, tasks, whole=whole) if tasks else []
    searches = [*map(read_task, selected), *read_mlqa(folder / "pairs/mlqa_dev.parquet")]
    sparse = encoder.config.sparse_head
    shown = [name for name, (weights, _) in FUSIONS.items() if sparse or "sparse" not in weights]
    shown += ["maxsim"] if encoder.config.multi_vector_dim else []
    say = sys.stdout.write
    say(table(["nDCG@10", *shown], []) + "\n")
    scores: dict[str, dict[str, float]] = {}
    for task in searches:
        scores[task.name] = score_task(task, encoder, shown, queries)
        say(_row(task.name, scores[task.name]))
        sys.stdout.flush()
    means = {name: float(np.mean([row[name] for row in scores.values()])) for name in shown}
    say(_row("mean", means))
    limit = "" if queries is None else f" At most {queries} queries per task."
    machine = describe_machine("lancedb", "openvino")
    say(f"\n{model or 'polyvec-mini'}.{limit} {machine} `python -m benchmarks.hybrid`\n")
    if scores_json is not None:
        record = {"model": model or "polyvec-mini", "queries": queries, "ndcg@10": scores}
        scores_json.write_text(json.dumps(record, indent=1) + "\n")


def _row(name: str, scores: Mapping[str, float]) -> str:
    return f"| {name} | {' | '.join(f'{100 * score:.1f}' for score in scores.values())} |\n"


def read_task(task: AbsTask) -> SearchTask:
    """Read one of mteb's retrieval tasks."""
    task.load_data()
    assert task.dataset is not None
    split: Any = next(iter(task.dataset.values()))["test"]
    documents = {row["id"]: f"{row['title']}\n{row['text']}".strip() for row in split["corpus"]}
    relevant = split["relevant_docs"]
    questions = {row["id"]: row["text"] for row in split["queries"] if row["id"] in relevant}
    return SearchTask(task.metadata.name, documents, dict(sorted(questions.items())), relevant, {})


def read_mlqa(file: Path, groups: int = 60, questions: int = 120) -> Iterator[SearchTask]:
    """Yield two tasks: questions in the language of the passage, and in other languages."""
    rows = pq.read_table(file).to_pylist()
    rng = np.random.default_rng(1)
    known = list(dict.fromkeys(row["group"] for row in rows))
    kept = {known[i] for i in rng.permutation(len(known))[:groups]}
    rows = [row for row in rows if row["group"] in kept]
    documents = {row["positive"]: row["positive"] for row in rows}
    translations: dict[str, set[str]] = {group: set() for group in kept}
    for row in rows:
        translations[row["group"]].add(row["positive"])
    for name, same in (("mlqa-same", True), ("mlqa-cross", False)):
        of_kind = [row for row in rows if (row["query_lang"] == row["positive_lang"]) == same]
        drawn = [of_kind[i] for i in rng.permutation(len(of_kind))[:questions]]
        yield SearchTask(
            name,
            documents,
            {str(i): row["query"] for i, row in enumerate(drawn)},
            {str(i): {row["positive"]: 1} for i, row in enumerate(drawn)},
            {str(i): translations[row["group"]] - {row["positive"]} for i, row in enumerate(drawn)},
        )


def score_task(
    task: SearchTask, encoder: Encoder, shown: Sequence[str], most: int | None
) -> dict[str, float]:
    """Return the mean nDCG@10 of every column over the first `most` questions."""
    documents, relevant = task.documents, task.relevant
    asked = dict(list(task.questions.items())[:most])
    config = encoder.config
    heads = {"sparse": config.sparse_head, "multi_vector": bool(config.multi_vector_dim)}
    outputs = ["dense", *(name for name in ("sparse", "multi_vector") if heads[name])]
    encoded = encoder.encode_all(list(documents.values()), task=PASSAGE, outputs=outputs)
    assert encoded.dense is not None
    columns: dict[str, pa.Array] = {
        "path": pa.array(list(documents)),
        "start": pa.array([0] * len(documents)),
        "text": pa.array(list(documents.values())),
        "words": pa.array([normalise(text) for text in documents.values()]),
        **pack_vectors(encoded.dense, "float"),
    }
    if encoded.sparse is not None:
        columns |= pack_sparse(encoded.sparse)
    if encoded.multi_vector is not None:
        columns |= pack_token_bits(encoded.multi_vector)
    token_vectors = dict(zip(documents, encoded.multi_vector or [], strict=False))
    usable = {name for name, is_there in heads.items() if is_there}
    names = [name for name in WEIGHTS if HEADS.get(name, "").replace("-", "_") in ("", *usable)]
    fusions = {name: fusion for name, fusion in FUSIONS.items() if name in shown}
    totals: dict[str, float] = {name: 0.0 for name in shown}
    with tempfile.TemporaryDirectory() as place:
        rows = lancedb.connect(place).create_table("documents", pa.table(columns))
        rows.create_index("words", config=WORD_INDEX)
        questions = encoder.encode_all(list(asked.values()), task=QUERY, outputs=outputs)
        for i, (number, text) in enumerate(asked.items()):
            question = questions[i : i + 1]
            candidates = find_candidates(
                rows,
                encoder.tokenizer,
                text,
                question,
                quantise="float",
                components=names,
                depth=MIN_CANDIDATES,
                where="",
            )
            orders = {
                name: [
                    path for path, _ in fuse(candidates.scores, weights, by, candidates.max_scores)
                ]
                for name, (weights, by) in fusions.items()
            }
            if heads["multi_vector"]:
                first = orders["search"][:RERANKED]
                passages = Outputs(None, None, [token_vectors[key] for key in first])
                scored = score_candidates(question, passages, ["multi_vector"])
                ranked = rank_candidates(scored, {"multi_vector": 1.0})
                orders["maxsim"] = [first[one.index] for one in ranked]
            for name, order in orders.items():
                others = task.left_out.get(number, ())
                counted = [key for key in order if key not in others]
                totals[name] += ndcg(counted, relevant[number]) / len(asked)
    return totals


def ndcg(order: Sequence[str], relevant: Mapping[str, int], depth: int = 10) -> float:
    """Return the normalised discounted cumulative gain at `depth`, as trec_eval computes it.

    >>> round(ndcg(["a", "b"], {"b": 1}), 3)
    0.631
    """
    gains = [relevant.get(key, 0) for key in order[:depth]]
    best = sorted(relevant.values(), reverse=True)[:depth]
    return _discounted(gains) / _discounted(best)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


if __name__ == "__main__":
    tyro.cli(main)
