"""Readers of task folders: the tables of each kind of task, in the form that mteb expects.

`task_tables` reads single tables and names the mistakes in them. This file names the mistakes
between tables. docs/evaluation.md describes all tables and their columns.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from polyvec.eval.task_tables import (
    Meta,
    Rows,
    as_whole_number,
    check_unique,
    fill_languages,
    find_table,
    one_of,
    read_table,
)
from polyvec.records import Columns, as_label, as_number, as_string, as_text

logger = logging.getLogger(__name__)

Subsets = dict[str, Any]
"""Test data by language, or by pair of languages, in the form that mteb's task class expects."""

TRAIN_TEXTS = 16
"""Training texts that are kept per label and language. mteb samples 8 of them, ten times."""

PAIR_LABELS = {
    **dict.fromkeys(("1", "true", "entailment", "paraphrase"), 1),
    **dict.fromkeys(("0", "false", "neutral", "contradiction", "not_entailment"), 0),
    **dict.fromkeys(("not_paraphrase",), 0),
}
"""Labels of pairs: 1 if the texts belong together."""

PAIRS = Columns(needed={"text1": as_text, "text2": as_text}, optional={"lang": as_text})
SCORED_PAIRS = replace(PAIRS, needed={**PAIRS.needed, "score": as_number})
LABELLED_PAIRS = replace(PAIRS, needed={**PAIRS.needed, "label": one_of(PAIR_LABELS)})
TRANSLATIONS = Columns(needed=dict.fromkeys(("s1", "s2", "lang1", "lang2"), as_text))
LABELLED_TEXTS = Columns(needed={"text": as_text, "label": as_label}, optional={"lang": as_text})
DOCUMENTS = Columns(needed={"id": as_label, "text": as_string}, optional={"title": as_string})
QUERIES = Columns(needed={"id": as_label, "text": as_text})
RELEVANCE = Columns(needed={"query_id": as_label, "corpus_id": as_label, "score": as_whole_number})


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


def read_scored_pairs(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    """Read pairs with a score, for the type sts."""
    return _read_pairs("score", SCORED_PAIRS, "score", folder, meta, max_rows)


def read_labelled_pairs(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    """Read pairs that belong together or not, for the type pair_classification."""
    return _read_pairs("label", LABELLED_PAIRS, "labels", folder, meta, max_rows)


def _read_pairs(
    column: str,
    columns: Columns,
    column_of_mteb: str,
    folder: Path,
    meta: Meta,
    max_rows: int | None,
) -> Subsets:
    pairs = read_table(folder, "pairs", columns)
    rows = [
        {
            "sentence1": row["text1"],
            "sentence2": row["text2"],
            column_of_mteb: row[column],
            "lang": row["lang"],
        }
        for row in fill_languages(pairs, folder, "pairs", meta["languages"])
    ]
    subsets = dict(_by_language(limit_rows(rows, max_rows)))
    for lang, part in subsets.items():
        _check_distinct((row[column_of_mteb] for row in part), folder, "pairs", column, lang)
    return {lang: {"test": Dataset.from_list(part)} for lang, part in subsets.items()}


def read_bitext(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    """Read pairs of translations. Each pair of languages is a subset."""
    pairs = read_table(folder, "pairs", TRANSLATIONS)
    rows = limit_rows([_bitext_row(row) for row in pairs], max_rows)
    return {lang: {"test": Dataset.from_list(part)} for lang, part in _by_language(rows)}


def _bitext_row(row: Mapping[str, Any]) -> dict[str, Any]:
    # The search goes into English, as in mteb's own Tatoeba task.
    sides = [(row["lang1"], row["s1"]), (row["lang2"], row["s2"])]
    (source, text1), (target, text2) = sorted(sides, key=lambda side: _english_last(side[0]))
    return {"sentence1": text1, "sentence2": text2, "lang": f"{source}-{target}"}


def _english_last(lang: str) -> tuple[bool, str]:
    return lang == "en", lang


def read_classification(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    """Read labelled texts to learn from and to test on. mteb knows labels by number."""
    parts = {
        part: fill_languages(
            read_table(folder, part, LABELLED_TEXTS), folder, part, meta["languages"]
        )
        for part in ("train", "test")
    }
    learnt = {(row["lang"], row["label"]) for row in parts["train"]}
    for row in parts["test"]:
        if (row["lang"], row["label"]) not in learnt:
            raise ValueError(
                f"{find_table(folder, 'test')}: the column label holds {row['label']!r}, which no "
                f"row of the language {row['lang']!r} has in {find_table(folder, 'train').name}"
            )
    numbers = {label: i for i, label in enumerate(sorted({x for _, x in learnt}, key=_natural))}
    subsets: Subsets = {}
    for part, rows in parts.items():
        for row in rows:
            row["label"] = numbers[row["label"]]
        if part == "test":
            rows = limit_rows(rows, max_rows)
        elif max_rows is not None:
            rows = sample_rows(rows, TRAIN_TEXTS, lambda row: (row["lang"], row["label"]))
        for lang, kept in _by_language(rows):
            subsets.setdefault(lang, DatasetDict())[part] = Dataset.from_list(kept)
    # A language that only the training table has is not scored.
    subsets = {lang: tables for lang, tables in subsets.items() if "test" in tables}
    for lang, tables in subsets.items():
        _check_distinct(tables["train"]["label"], folder, "train", "label", lang)
    return subsets


def _natural(label: str) -> tuple[int, str]:
    """Return a key that sorts the labels 2 and 10 as numbers."""
    return (int(label) if label.isdecimal() else 0, label)


def read_clustering(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    """Read texts with the label of their cluster."""
    texts = read_table(folder, "texts", LABELLED_TEXTS)
    rows = limit_rows([{"sentences": r["text"], "labels": r["label"]} for r in texts], max_rows)
    lang = meta["languages"][0]
    _check_distinct((row["labels"] for row in rows), folder, "texts", "label", lang)
    return {lang: {"test": Dataset.from_list(rows)}}


def read_retrieval(folder: Path, meta: Meta, max_rows: int | None) -> Subsets:
    """Read a corpus, its queries, and the documents that are relevant to each query."""
    corpus = [
        {"id": row["id"], "title": row["title"] or "", "text": row["text"]}
        for row in read_table(folder, "corpus", DOCUMENTS)
    ]
    queries = read_table(folder, "queries", QUERIES)
    check_unique(corpus, folder, "corpus")
    check_unique(queries, folder, "queries")
    relevant: dict[str, dict[str, int]] = {}
    for row in read_table(folder, "qrels", RELEVANCE):
        relevant.setdefault(row["query_id"], {})[row["corpus_id"]] = row["score"]
    path = find_table(folder, "qrels")
    judged = {document for answers in relevant.values() for document in answers}
    _check_known("query_id", relevant, {row["id"] for row in queries}, path, "queries")
    _check_known("corpus_id", judged, {row["id"] for row in corpus}, path, "corpus")
    if without := sum(row["id"] not in relevant for row in queries):
        logger.warning("%s: %d queries have no row and are not scored", path, without)
    corpus = limit_rows(corpus, max_rows)
    kept = {document["id"] for document in corpus}
    # A query whose relevant documents were removed has nothing to find.
    relevant = {query: answers for query, answers in relevant.items() if answers.keys() <= kept}
    if not relevant:
        raise ValueError(
            f"{path}: no query has all of its documents among the {len(kept)} that --no-whole "
            "keeps; score the whole corpus"
        )
    split = {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list([row for row in queries if row["id"] in relevant]),
        "relevant_docs": relevant,
        "top_ranked": None,
    }
    return {meta["languages"][0]: {"test": split}}


def listed_languages(folder: Path, meta: Meta) -> list[tuple[str, ...]]:
    """Return the languages of `meta.json`, one for each subset."""
    return [(lang,) for lang in meta["languages"]]


def paired_languages(folder: Path, meta: Meta) -> list[tuple[str, ...]]:
    """Return the pairs of languages of a table of translations."""
    rows = read_table(folder, "pairs", TRANSLATIONS)
    return sorted({tuple(sorted((r["lang1"], r["lang2"]), key=_english_last)) for r in rows})


def _by_language(rows: Rows) -> Iterator[tuple[str, Rows]]:
    parts: dict[str, Rows] = {}
    for row in rows:
        parts.setdefault(row.pop("lang"), []).append(row)
    yield from sorted(parts.items())


def _check_distinct(
    values: Iterable[object], folder: Path, table: str, column: str, lang: str
) -> None:
    """Raise ValueError if all values are the same, because then nothing can be measured."""
    if len(set(values)) < 2:
        raise ValueError(
            f"{find_table(folder, table)}: the column {column} is the same in every row of the "
            f"language {lang!r}, so there is nothing to score"
        )


def _check_known(column: str, used: Iterable[str], known: set[str], path: Path, table: str) -> None:
    """Raise ValueError if a table of relevance names a query or a document that does not exist."""
    unknown = [name for name in used if name not in known]
    if unknown:
        raise ValueError(
            f"{path}: the column {column} holds {unknown[0]!r}, which is no id of the table {table}"
        )
