"""Everything that is particular to one kind of evaluation task, in two tables.

`KINDS` says, for each kind, how a task folder is read, which adapter embeds its texts and which
column of the report shows it. `METRICS` says, for each main score, what it is called and how its
interval is computed. The runner, the intervals, the adapters and the reports look everything up
here, so a new kind or a new metric is a change of this file alone.

A task folder holds `meta.json` (name, type, metric, languages) and the Parquet tables of its type:

    sts                  pairs.parquet   text1, text2, score, lang
    pair_classification  pairs.parquet   text1, text2, label, lang
    bitext               pairs.parquet   s1, s2, lang1, lang2
    classification       train.parquet, test.parquet   text, label, lang
    clustering           texts.parquet   text, label
    retrieval, longdoc   corpus.parquet  id, text, title; queries.parquet  id, text, lang;
                         qrels.parquet   query_id, corpus_id, score
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskType

from polyvec.eval.intervals import (
    Draws,
    bootstrap_average_precision,
    bootstrap_mean,
    bootstrap_spearman,
    match_scores,
    query_scores,
)

Rows = list[dict[str, Any]]

Subsets = dict[str, Any]
"""Test data by language, or by pair of languages, in the form that mteb's task class expects."""

Meta = Mapping[str, Any]
"""The content of a folder's `meta.json`."""

TestData = Any
"""The test data of one subset as mteb holds it: a `datasets.Dataset`, or a dict of them."""

Predictions = Any
"""The JSON that mteb wrote for one subset in its prediction folder."""

TRAIN_TEXTS = 16
"""Training texts that are kept per label and language. mteb samples 8 of them, ten times."""

POSITIVE_LABELS = {"1", "entailment", "paraphrase"}
"""Labels of pairs that belong together. Every other label is negative."""

TEXT_COLUMNS = {"sentence1", "sentence2", "text", "title", "sentences"}
"""Columns of mteb's tables that hold texts to embed."""

LONG_CONTEXT = ("needle-*", "passkey-*", "qmsum-*", "LEMB*")
"""Names of retrieval tasks that test long documents. They have a column of their own."""

LONG_CONTEXT_COLUMN = "long context"
OTHER_COLUMN = "other"


@dataclass(frozen=True, slots=True)
class Metric:
    """A main score of an mteb task."""

    title: str
    """Name of the score in reports."""

    bootstrap: Callable[[TestData, Predictions], Draws] | None = None
    """Computes the score of each bootstrap resample of one subset. None if the score is not made
    of scores of single items, and therefore has no interval."""

    meta_name: str = ""
    """The `metric` in `meta.json` that selects this score in place of the default of the kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFormat:
    """The steps that turn a task folder into an mteb task."""

    mteb_class: type[AbsTask]
    metric: str
    """The main score, by its name in `METRICS`."""

    read: Callable[[Path, Meta, int | None], Subsets]
    """Reads the tables of a folder. The last argument is the largest number of rows, or None."""

    table: str
    """The Parquet table whose rows are limited."""

    max_rows: int
    """Rows of that table that are kept, divided equally among the languages of the task."""

    unit: str
    """The noun for the rows of that table, in the plural, for reports."""

    settings: Mapping[str, object] = field(default_factory=dict)
    """Attributes of the mteb class that differ from its defaults."""

    subset_languages: Callable[[Path, Meta], list[tuple[str, ...]]]
    """Lists the languages of each subset of a folder."""

    further_cut: str = ""
    """Describes the rows that the reader leaves out of other tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """One kind of task."""

    mteb_type: TaskType
    column: str
    """The column of the report in which its scores are averaged."""

    adapter: str | None = None
    """The adapter that the paper uses (arXiv:2409.10173, section 6). None for retrieval, where the
    adapter depends on whether a text is a query or a passage."""

    folder: FolderFormat | None = None
    """None if only mteb's own tasks are of this kind."""


def find_kind(mteb_type: str) -> TaskKind | None:
    """Return the kind of mteb's task type, or None if the table does not have it."""
    return next((kind for kind in KINDS.values() if kind.mteb_type == mteb_type), None)


def folder_formats() -> dict[str, FolderFormat]:
    """Return the format of each `type` that a task folder can have."""
    return {name: kind.folder for name, kind in KINDS.items() if kind.folder}


def report_column(name: str, mteb_type: str) -> str:
    """Return the column of the report for the task called `name`.

    >>> report_column("stsb-dev", "STS"), report_column("needle-256", "Retrieval")
    ('STS', 'long context')
    """
    if is_long_context(name):
        return LONG_CONTEXT_COLUMN
    kind = find_kind(mteb_type)
    return kind.column if kind else OTHER_COLUMN


def is_long_context(name: str) -> bool:
    """Tell whether the task called `name` tests long documents."""
    return any(fnmatch(name, pattern) for pattern in LONG_CONTEXT)


def main_metric(folder: FolderFormat, meta: Meta) -> str:
    """Return the main score of a task folder, by its name in `METRICS`."""
    named = {metric.meta_name: name for name, metric in METRICS.items() if metric.meta_name}
    return named.get(meta["metric"], folder.metric)


def limit_rows(rows: Rows, max_rows: int | None) -> Rows:
    """Return all rows, or an equal number of each language if there are more than `max_rows`."""
    if max_rows is None or len(rows) <= max_rows:
        return rows
    languages = {row.get("lang") for row in rows}
    return sample_rows(rows, max_rows // len(languages), lambda row: row.get("lang"))


def sample_rows(rows: Rows, size: int, group: Callable[[Mapping[str, Any]], object]) -> Rows:
    """Return `size` rows of each group, in their order.

    A hash of the content of each row decides, so the same rows are kept whatever their order.
    """
    numbers: dict[object, list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(group(row), []).append(number)
    keys = [hashlib.sha256(repr(sorted(row.items())).encode()).digest() for row in rows]
    kept = [i for part in numbers.values() for i in sorted(part, key=keys.__getitem__)[:size]]
    return [rows[i] for i in sorted(kept)]


def _read_rows(path: Path) -> Rows:
    return pq.read_table(path).to_pylist()


def _by_language(rows: Rows) -> Iterator[tuple[str, Rows]]:
    parts: dict[str, Rows] = {}
    for row in rows:
        parts.setdefault(row.pop("lang"), []).append(row)
    yield from sorted(parts.items())


def _read_pairs(
    make_row: Callable[[Mapping[str, Any]], dict[str, Any]],
    folder: Path,
    meta: Meta,
    max_rows: int | None,
) -> Subsets:
    rows = limit_rows([make_row(row) for row in _read_rows(folder / "pairs.parquet")], max_rows)
    return {lang: {"test": Dataset.from_list(part)} for lang, part in _by_language(rows)}


def _sts_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sentence1": row["text1"],
        "sentence2": row["text2"],
        "score": row["score"],
        "lang": row["lang"],
    }


def _labelled_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sentence1": row["text1"],
        "sentence2": row["text2"],
        "labels": int(str(row["label"]) in POSITIVE_LABELS),
        "lang": row["lang"],
    }


def _bitext_row(row: Mapping[str, Any]) -> dict[str, Any]:
    # The search goes into English, as in mteb's own Tatoeba task.
    sides = [(row["lang1"], row["s1"]), (row["lang2"], row["s2"])]
    (source, text1), (target, text2) = sorted(sides, key=lambda side: _english_last(side[0]))
    return {"sentence1": text1, "sentence2": text2, "lang": f"{source}-{target}"}


def _english_last(lang: str) -> tuple[bool, str]:
    return lang == "en", lang


def _read_classification(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    parts = {part: _read_rows(folder / f"{part}.parquet") for part in ("train", "test")}
    labels = sorted({row["label"] for rows in parts.values() for row in rows})
    number = {label: i for i, label in enumerate(labels)}
    subsets: Subsets = {}
    for part, rows in parts.items():
        for row in rows:
            row["label"] = number[row["label"]]
        if part == "test":
            rows = limit_rows(rows, max_rows)
        elif max_rows is not None:
            rows = sample_rows(rows, TRAIN_TEXTS, lambda row: (row["lang"], row["label"]))
        for lang, kept in _by_language(rows):
            subsets.setdefault(lang, DatasetDict())[part] = Dataset.from_list(kept)
    return subsets


def _read_clustering(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    rows = [
        {"sentences": row["text"], "labels": row["label"]}
        for row in _read_rows(folder / "texts.parquet")
    ]
    return {meta["languages"][0]: {"test": Dataset.from_list(limit_rows(rows, max_rows))}}


def _read_retrieval(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    relevant: dict[str, dict[str, int]] = {}
    for row in _read_rows(folder / "qrels.parquet"):
        relevant.setdefault(row["query_id"], {})[row["corpus_id"]] = int(row["score"])
    corpus = [
        {"id": row["id"], "title": row["title"] or "", "text": row["text"]}
        for row in _read_rows(folder / "corpus.parquet")
    ]
    queries = [
        {"id": row["id"], "text": row["text"]} for row in _read_rows(folder / "queries.parquet")
    ]
    corpus = limit_rows(corpus, max_rows)
    kept = {document["id"] for document in corpus}
    # A query whose relevant documents were removed has nothing to find.
    relevant = {query: answers for query, answers in relevant.items() if answers.keys() <= kept}
    queries = [query for query in queries if query["id"] in relevant]
    split = {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list(queries),
        "relevant_docs": relevant,
        "top_ranked": None,
    }
    return {meta["languages"][0]: {"test": split}}


def _listed_languages(folder: Path, meta: Meta) -> list[tuple[str, ...]]:
    return [(lang,) for lang in meta["languages"]]


def _paired_languages(folder: Path, meta: Meta) -> list[tuple[str, ...]]:
    table = pq.read_table(folder / "pairs.parquet", columns=["lang1", "lang2"]).to_pylist()
    return sorted({tuple(sorted(row.values(), key=_english_last)) for row in table})


def _spearman(data: TestData, predictions: Predictions) -> Draws:
    return bootstrap_spearman(np.array(data["score"]), np.array(predictions["cosine_scores"]))


def _average_precision(data: TestData, predictions: Predictions) -> Draws:
    scores = np.array(predictions["cosine_scores"])
    return bootstrap_average_precision(np.array(data["labels"]), scores)


def _bitext_f1(data: TestData, predictions: Predictions) -> Draws:
    nearest = [match["corpus_id"] for match in predictions["sentence1-sentence2"]]
    return bootstrap_mean(match_scores(np.array(nearest)))


def _accuracy(data: TestData, predictions: Predictions) -> Draws:
    correct_EN = np.array(predictions) == np.array(data["label"])
    return bootstrap_mean(correct_EN.mean(0))


def mean_over_queries(measure: str, data: TestData, predictions: Predictions) -> Draws:
    """Return the mean over the queries of each resample, for any measure of trec_eval."""
    return bootstrap_mean(query_scores(measure, data["relevant_docs"], predictions))


METRICS = {
    "cosine_spearman": Metric("Spearman", _spearman),
    "cosine_ap": Metric("average precision", _average_precision),
    "ndcg_at_10": Metric("nDCG@10", partial(mean_over_queries, "ndcg_cut.10")),
    # With one relevant document per query, nDCG@1 is the share of queries whose first document is
    # the right one.
    "ndcg_at_1": Metric("nDCG@1", partial(mean_over_queries, "ndcg_cut.1"), "accuracy@1"),
    "f1": Metric("F1", _bitext_f1),
    "accuracy": Metric("accuracy", _accuracy),
    "v_measure": Metric("V-measure"),
}
"""Main scores by mteb's name."""

RETRIEVAL = TaskKind(
    mteb_type="Retrieval",
    column="retrieval",
    folder=FolderFormat(
        mteb_class=AbsTaskRetrieval,
        metric="ndcg_at_10",
        read=_read_retrieval,
        table="corpus",
        max_rows=300,
        unit="documents",
        subset_languages=_listed_languages,
    ),
)

KINDS = {
    "sts": TaskKind(
        mteb_type="STS",
        column="STS",
        adapter="text-matching",
        folder=FolderFormat(
            mteb_class=AbsTaskSTS,
            metric="cosine_spearman",
            read=partial(_read_pairs, _sts_row),
            table="pairs",
            max_rows=4400,
            unit="pairs",
            subset_languages=_listed_languages,
        ),
    ),
    "retrieval": RETRIEVAL,
    "longdoc": RETRIEVAL,
    "bitext": TaskKind(
        mteb_type="BitextMining",
        column="bitext",
        adapter="text-matching",
        folder=FolderFormat(
            mteb_class=AbsTaskBitextMining,
            metric="f1",
            read=partial(_read_pairs, _bitext_row),
            table="pairs",
            max_rows=8000,
            unit="pairs",
            subset_languages=_paired_languages,
        ),
    ),
    "classification": TaskKind(
        mteb_type="Classification",
        column="classification",
        adapter="classification",
        folder=FolderFormat(
            mteb_class=AbsTaskClassification,
            metric="accuracy",
            read=_read_classification,
            table="test",
            max_rows=2000,
            unit="test texts",
            subset_languages=_listed_languages,
            further_cut=f"train cut to {TRAIN_TEXTS} texts a label and language",
        ),
    ),
    "clustering": TaskKind(
        mteb_type="Clustering",
        column="clustering",
        adapter="separation",
        folder=FolderFormat(
            mteb_class=AbsTaskClustering,
            metric="v_measure",
            read=_read_clustering,
            table="texts",
            max_rows=1024,
            unit="texts",
            # The settings of mteb's own arXiv clustering tasks.
            settings={"max_fraction_of_documents_to_embed": None, "max_document_to_embed": 2048},
            subset_languages=_listed_languages,
        ),
    ),
    "pair_classification": TaskKind(
        mteb_type="PairClassification",
        column="pair classification",
        adapter="classification",
        folder=FolderFormat(
            mteb_class=AbsTaskPairClassification,
            metric="cosine_ap",
            read=partial(_read_pairs, _labelled_row),
            table="pairs",
            max_rows=4400,
            unit="pairs",
            subset_languages=_listed_languages,
        ),
    ),
    "reranking": TaskKind(mteb_type="Reranking", column="reranking", adapter="separation"),
    "multilabel_classification": TaskKind(
        mteb_type="MultilabelClassification", column="classification", adapter="classification"
    ),
    "summarisation": TaskKind(
        mteb_type="Summarization", column="summarisation", adapter="text-matching"
    ),
    "instruction_reranking": TaskKind(
        mteb_type="InstructionReranking", column=OTHER_COLUMN, adapter="separation"
    ),
}
"""Kinds by the `type` in a folder's `meta.json`, in the order of the report's columns."""

COLUMNS = [
    *dict.fromkeys([*(kind.column for kind in KINDS.values()), OTHER_COLUMN, LONG_CONTEXT_COLUMN])
]
