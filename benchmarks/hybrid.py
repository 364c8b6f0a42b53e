"""What each component of `polyvec search` finds alone, and what they find together: nDCG@10.

`python -m benchmarks.hybrid`: the public retrieval tasks in ../shared/data/eval, with the bundled
model; `--queries 20 --tasks tydiqa-dev-sw` to try it. Every document is one passage of a table such
as an index has, and questions go through the code that answers `polyvec search`: its candidates,
its fusion, its MaxSim. So the adapters are those of a search too, in every task.

    dense, bm25, sparse   one component; sparse judges what the two others have found
    search                dense and bm25 by scores, with the weights that `polyvec search` has
    even                  dense and bm25 by scores, alike
    ranks                 dense and bm25 by ranks, alike: reciprocal rank fusion
    all                   the three by scores, alike
    maxsim                the first 20 of `search`, in the order of MaxSim
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import lancedb
import numpy as np
import pyarrow as pa
import tyro
from mteb.abstasks import AbsTask

from benchmarks.report import describe_machine, table
from polyvec import Encoder, maxsim
from polyvec.eval.local import local_tasks
from polyvec.search.asking import CANDIDATES, PASSAGE, QUERY, WEIGHTS, find_candidates
from polyvec.search.fusion import By, fuse
from polyvec.search.index import WORDS
from polyvec.search.vectors import pack_vectors

TASKS = ("tydiqa-dev-*", "needle-256", "needle-512", "passkey-256", "passkey-512")
"""Retrieval of passages; longer documents are not what a search's passages are."""

RERANKED = 20

FUSIONS: dict[str, tuple[dict[str, float], By]] = {
    "dense": ({"dense": 1.0}, "scores"),
    "bm25": ({"bm25": 1.0}, "scores"),
    "sparse": ({"sparse": 1.0}, "scores"),
    "search": ({name: weight for name, weight in WEIGHTS.items() if weight}, "scores"),
    "even": ({"dense": 1.0, "bm25": 1.0}, "scores"),
    "ranks": ({"dense": 1.0, "bm25": 1.0}, "ranks"),
    "all": ({"dense": 1.0, "bm25": 1.0, "sparse": 1.0}, "scores"),
}


def main(
    tasks: tuple[str, ...] = TASKS,
    queries: int | None = None,
    whole: bool = False,
    model: str | None = None,
    data: Path = Path("../shared/data"),
    scores_json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Score all of them, and print a Markdown table.

    Args:
        tasks: Names or types of task folders.
        queries: So many queries of each task; all by default.
        whole: Do not cut large corpora, as `polyvec eval run` does.
        model: A folder or a hub name; the bundled model by default.
        data: The folder that holds `eval/`.
        scores_json: Where to write the scores, too.

    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    encoder = Encoder.load(model)
    scores = {
        task.metadata.name: score_task(task, encoder, queries)
        for task in local_tasks(data, tasks, whole=whole)
    }
    names = list(next(iter(scores.values())))
    means = {name: float(np.mean([row[name] for row in scores.values()])) for name in names}
    rows = [
        [task, *(f"{100 * row[name]:.1f}" for name in names)]
        for task, row in [*scores.items(), ("mean", means)]
    ]
    cut = "" if queries is None else f" {queries} queries a task at most."
    sys.stdout.write(table(["nDCG@10", *names], rows) + "\n\n")
    machine = describe_machine("lancedb", "openvino")
    sys.stdout.write(f"{model or 'polyvec-mini'}.{cut} {machine} `python -m benchmarks.hybrid`\n")
    if scores_json is not None:
        told = {"model": model or "polyvec-mini", "queries": queries, "ndcg@10": scores}
        scores_json.write_text(json.dumps(told, indent=1) + "\n")


def score_task(task: AbsTask, encoder: Encoder, most: int | None) -> dict[str, float]:
    """The mean nDCG@10 of every column that the model has the heads for."""
    task.load_data()
    assert task.dataset is not None
    split: Any = next(iter(task.dataset.values()))["test"]
    documents = {row["id"]: f"{row['title']}\n{row['text']}".strip() for row in split["corpus"]}
    relevant: Mapping[str, Mapping[str, int]] = split["relevant_docs"]
    asked = {row["id"]: row["text"] for row in split["queries"] if row["id"] in relevant}
    asked = dict(sorted(asked.items())[:most])
    config = encoder.config
    heads = {"sparse": config.sparse_head, "multi": bool(config.multi_dim)}
    found = encoder.encode_all(
        list(documents.values()),
        task=PASSAGE,
        outputs=["dense", *(name for name in ("sparse", "multi") if heads[name])],
    )
    assert found.dense is not None
    columns: dict[str, pa.Array] = {
        "path": pa.array(list(documents)),
        "start": pa.array([0] * len(documents)),
        "text": pa.array(list(documents.values())),
        **pack_vectors(found.dense, "float"),
    }
    if found.sparse is not None:
        ends = pa.array(found.sparse.indptr.astype(np.int32))
        columns["tokens"] = pa.ListArray.from_arrays(ends, pa.array(found.sparse.indices))
        columns["weights"] = pa.ListArray.from_arrays(ends, pa.array(found.sparse.data))
    token_vectors = dict(zip(documents, found.multi or [], strict=False))
    names = [name for name in WEIGHTS if heads.get(name, True)]
    fusions = {name: f for name, f in FUSIONS.items() if f[0].keys() <= set(names)}
    shown = [*fusions, *(["maxsim"] if heads["multi"] else [])]
    totals: dict[str, float] = {name: 0.0 for name in shown}
    with tempfile.TemporaryDirectory() as place:
        rows = lancedb.connect(place).create_table("documents", pa.table(columns))
        rows.create_index("text", config=WORDS)
        vectors = encoder.encode(list(asked.values()), task=QUERY)
        for (number, text), vector in zip(asked.items(), vectors, strict=True):
            _, scores = find_candidates(
                rows,
                encoder,
                text,
                vector=vector,
                quantise="float",
                names=names,
                depth=CANDIDATES,
                where="",
            )
            orders = {
                name: [path for path, _ in fuse({n: scores[n] for n in weights}, weights, by)]
                for name, (weights, by) in fusions.items()
            }
            if heads["multi"]:
                first = orders["search"][:RERANKED]
                query = encoder.encode_multi([text], task=QUERY)[0]
                likeness = maxsim(query, [token_vectors[key] for key in first])
                orders["maxsim"] = [first[i] for i in np.argsort(-likeness, kind="stable")]
            for name, order in orders.items():
                totals[name] += ndcg(order, relevant[number]) / len(asked)
    return totals


def ndcg(order: Sequence[str], relevant: Mapping[str, int], depth: int = 10) -> float:
    """Normalised discounted cumulative gain of the first `depth`, as trec_eval has it.

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
