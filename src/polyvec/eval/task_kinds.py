"""Everything that is particular to one kind of evaluation task, in two tables.

`KINDS` says, for each kind, how a task folder is read, which adapter embeds its texts and which
column of the report shows it. `METRICS` says, for each main score, what it is called and how its
interval is computed. The runner, the intervals, the adapters and the reports look everything up
here, so a new kind or a new metric is a change of this file alone.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from polyvec.eval.task_readers import (
    DOCUMENTS,
    LABELLED_PAIRS,
    LABELLED_TEXTS,
    SCORED_PAIRS,
    TRAIN_TEXTS,
    TRANSLATIONS,
    Subsets,
    listed_languages,
    paired_languages,
    read_bitext,
    read_classification,
    read_clustering,
    read_labelled_pairs,
    read_retrieval,
    read_scored_pairs,
)
from polyvec.eval.task_tables import Meta
from polyvec.records import Columns

TestData = Any
"""The test data of one subset as mteb holds it: a `datasets.Dataset`, or a dict of them."""

Predictions = Any
"""The JSON that mteb wrote for one subset in its prediction folder."""

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
    """The `metric` in `meta.json` that selects this score."""

    mteb_type: TaskType = "Retrieval"
    """mteb's type of the tasks that have this score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFormat:
    """The steps that turn a task folder into an mteb task."""

    mteb_class: type[AbsTask]
    metric: str
    """The main score, by its name in `METRICS`."""

    read: Callable[[Path, Meta, int | None], Subsets]
    """Reads the tables of a folder. The last argument is the largest number of rows, or None."""

    table: str
    """The table whose rows are limited."""

    columns: Columns
    """The columns of that table."""

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


def main_metric(kind: TaskKind, meta: Meta) -> str:
    """Return the main score of a task folder, by its name in `METRICS`.

    `metric` in `meta.json` is the name of a score and, after a space, any remark. Without it, the
    kind's default is used. Raises ValueError if this kind of task has no such score.
    """
    assert kind.folder is not None
    wanted = f"{meta['metric'].strip().lower()} "
    if wanted.isspace():
        return kind.folder.metric
    own = {name: metric for name, metric in METRICS.items() if metric.mteb_type == kind.mteb_type}
    for name, metric in own.items():
        if wanted.startswith((f"{metric.meta_name} ", f"{name} ")):
            return name
    known = " or ".join(metric.meta_name for metric in own.values())
    raise ValueError(
        f"'metric' is {meta['metric']!r}, which the type {meta['type']!r} does not have; it has "
        f"{known}"
    )


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
    "cosine_spearman": Metric("Spearman", _spearman, "spearman", "STS"),
    "cosine_ap": Metric(
        "average precision", _average_precision, "average precision", "PairClassification"
    ),
    "ndcg_at_10": Metric("nDCG@10", partial(mean_over_queries, "ndcg_cut.10"), "ndcg@10"),
    # With one relevant document per query, nDCG@1 is the share of queries whose first document is
    # the right one.
    "ndcg_at_1": Metric("nDCG@1", partial(mean_over_queries, "ndcg_cut.1"), "accuracy@1"),
    "f1": Metric("F1", _bitext_f1, "f1", "BitextMining"),
    "accuracy": Metric("accuracy", _accuracy, "accuracy", "Classification"),
    "v_measure": Metric("V-measure", None, "v_measure", "Clustering"),
}
"""Main scores by mteb's name."""

RETRIEVAL = TaskKind(
    mteb_type="Retrieval",
    column="retrieval",
    folder=FolderFormat(
        mteb_class=AbsTaskRetrieval,
        metric="ndcg_at_10",
        read=read_retrieval,
        table="corpus",
        columns=DOCUMENTS,
        max_rows=300,
        unit="documents",
        subset_languages=listed_languages,
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
            read=read_scored_pairs,
            table="pairs",
            columns=SCORED_PAIRS,
            max_rows=4400,
            unit="pairs",
            subset_languages=listed_languages,
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
            read=read_bitext,
            table="pairs",
            columns=TRANSLATIONS,
            max_rows=8000,
            unit="pairs",
            subset_languages=paired_languages,
        ),
    ),
    "classification": TaskKind(
        mteb_type="Classification",
        column="classification",
        adapter="classification",
        folder=FolderFormat(
            mteb_class=AbsTaskClassification,
            metric="accuracy",
            read=read_classification,
            table="test",
            columns=LABELLED_TEXTS,
            max_rows=2000,
            unit="test texts",
            subset_languages=listed_languages,
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
            read=read_clustering,
            table="texts",
            columns=LABELLED_TEXTS,
            max_rows=1024,
            unit="texts",
            # By default, mteb embeds 4 % of the texts.
            settings={
                "max_fraction_of_documents_to_embed": None,
                "max_document_to_embed": sys.maxsize,
            },
            subset_languages=listed_languages,
        ),
    ),
    "pair_classification": TaskKind(
        mteb_type="PairClassification",
        column="pair classification",
        adapter="classification",
        folder=FolderFormat(
            mteb_class=AbsTaskPairClassification,
            metric="cosine_ap",
            read=read_labelled_pairs,
            table="pairs",
            columns=LABELLED_PAIRS,
            max_rows=4400,
            unit="pairs",
            subset_languages=listed_languages,
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
