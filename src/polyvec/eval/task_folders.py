"""A folder of tables becomes an mteb task, so that mteb's code, not ours, gives the score.

A task folder holds `meta.json` (name, type, metric, languages) and Parquet tables:

    sts                  pairs.parquet   text1, text2, score, lang
    pair_classification  pairs.parquet   text1, text2, label, lang
    bitext               pairs.parquet   s1, s2, lang1, lang2
    classification       train.parquet, test.parquet   text, label, lang
    clustering           texts.parquet   text, label
    retrieval, longdoc   corpus.parquet  id, text, title; queries.parquet  id, text, lang;
                         qrels.parquet   query_id, corpus_id, score

Languages are mteb's subsets, each scored alone; a task's score is the mean over its languages.

So that every task of the development data is scored in minutes on two CPU cores, large tables are
cut (`Kind.most`, `TRAIN_TEXTS`) and the largest corpora are left to runs that name them
(`MOST_CHARACTERS`). Which rows stay is decided by a hash of what they say, so every model reads
the same ones; a task's description in mteb's metadata tells, and its revision changes with it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

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
from mteb.abstasks.task_metadata import TaskMetadata, TaskType
from mteb.languages import iso_mappings

Rows = list[dict[str, Any]]
Subsets = dict[str, Any]
Meta = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """How one type of folder is read, and what mteb does with it."""

    mteb_class: type[AbsTask]
    mteb_type: TaskType
    main_score: str
    read: Callable[[Path, Meta, int | None], Subsets]
    table: str
    """The Parquet table whose rows are counted."""

    most: int
    """Rows of that table that are kept, shared equally by the task's languages."""

    settings: Mapping[str, object] = field(default_factory=dict)
    """Attributes of the mteb class that are not left at its defaults."""


def local_tasks(data: Path, names: Sequence[str] = (), *, whole: bool = False) -> list[AbsTask]:
    """The tasks in `data/eval` (or in `data` itself), by name; their tables are not read yet.

    `names` selects tasks by name (`tydiqa-*` too) or by type (`sts`, `retrieval` ...); none
    selects all, but for those whose documents are so long that they would take most of the time.
    `whole` takes those too, and cuts no table. Raises ValueError where there is no task, or a
    name matches none.
    """
    root = data / "eval" if (data / "eval").is_dir() else data
    metas = {path.parent: json.loads(path.read_text()) for path in root.glob("*/meta.json")}
    if not metas:
        raise ValueError(f"{root} holds no task folder (a folder with a meta.json)")
    chosen: dict[Path, Meta] = {}
    if not names:
        chosen = {f: m for f, m in metas.items() if whole or not _is_long(f)}
    for name in names:
        found = {f: m for f, m in metas.items() if fnmatch(m["name"], name) or m["type"] == name}
        if not found:
            known = ", ".join(
                sorted({word for m in metas.values() for word in (m["name"], m["type"])})
            )
            raise ValueError(f"no task {name!r} in {root}; it has {known}")
        chosen |= found
    order = sorted(chosen.items(), key=lambda item: _natural(item[1]["name"]))
    return [make_task(folder, meta, whole=whole) for folder, meta in order]


def make_task(folder: Path, meta: Meta, *, whole: bool = False) -> AbsTask:
    """One folder as an mteb task that reads its tables when mteb asks for them."""
    if meta["type"] not in KINDS:
        raise ValueError(f"{folder}: type {meta['type']!r} is not one of {', '.join(KINDS)}")
    kind = KINDS[meta["type"]]
    most = None if whole else kind.most
    cuts = "" if whole else _cuts(folder, kind)

    def load_data(self: AbsTask, num_proc: int | None = None, *, timer: object = None) -> None:
        self.dataset = kind.read(folder, meta, most)
        self.hf_subsets = sorted(self.dataset)
        self.data_loaded = True

    metadata = TaskMetadata(
        name=meta["name"],
        description=". ".join(filter(None, [meta.get("note") or meta["name"], cuts])),
        type=kind.mteb_type,
        category="t2t",
        main_score=MAIN_SCORES.get(meta["metric"], kind.main_score),
        eval_splits=["test"],
        eval_langs=_languages(folder, meta),
        dataset={"path": f"local/{meta['name']}", "revision": _fingerprint(folder, cuts)},
    )
    members = {"metadata": metadata, "load_data": load_data, **kind.settings}
    return type(kind.mteb_class.__name__.removeprefix("AbsTask"), (kind.mteb_class,), members)()


def task_texts(task: AbsTask) -> Iterator[str]:
    """Every text of a loaded task, training parts included."""
    assert task.dataset is not None, "load_data first"
    for parts in task.dataset.values():
        for part in parts.values():
            for table in part.values() if isinstance(part, dict) else [part]:
                for column in TEXT_COLUMNS & set(getattr(table, "column_names", ())):
                    yield from table[column]


def _read_sts(folder: Path, meta: Meta, most: int | None) -> Subsets:
    rows = [
        {"sentence1": r["text1"], "sentence2": r["text2"], "score": r["score"], "lang": r["lang"]}
        for r in _rows(folder / "pairs.parquet")
    ]
    return {
        lang: {"test": Dataset.from_list(part)} for lang, part in _by_language(_cut(rows, most))
    }


def _read_pairs(folder: Path, meta: Meta, most: int | None) -> Subsets:
    rows = [
        {
            "sentence1": r["text1"],
            "sentence2": r["text2"],
            "labels": int(str(r["label"]) in POSITIVE),
            "lang": r["lang"],
        }
        for r in _rows(folder / "pairs.parquet")
    ]
    return {
        lang: {"test": Dataset.from_list(part)} for lang, part in _by_language(_cut(rows, most))
    }


def _read_bitext(folder: Path, meta: Meta, most: int | None) -> Subsets:
    rows = []
    for r in _rows(folder / "pairs.parquet"):
        sides = [(r["lang1"], r["s1"]), (r["lang2"], r["s2"])]
        # Into English, as in mteb's own Tatoeba task.
        sides.sort(key=lambda side: (side[0] == "en", side[0]))
        (lang1, text1), (lang2, text2) = sides
        rows.append({"sentence1": text1, "sentence2": text2, "lang": f"{lang1}-{lang2}"})
    return {
        pair: {"test": Dataset.from_list(part)} for pair, part in _by_language(_cut(rows, most))
    }


def _read_classification(folder: Path, meta: Meta, most: int | None) -> Subsets:
    parts = {part: _rows(folder / f"{part}.parquet") for part in ("train", "test")}
    labels = sorted({row["label"] for rows in parts.values() for row in rows})
    number = {label: i for i, label in enumerate(labels)}
    subsets: Subsets = {}
    for part, rows in parts.items():
        for row in rows:
            row["label"] = number[row["label"]]
        if part == "test":
            rows = _cut(rows, most)
        elif most is not None:
            rows = _share(rows, TRAIN_TEXTS, lambda row: (row["lang"], row["label"]))
        for lang, chosen in _by_language(rows):
            subsets.setdefault(lang, DatasetDict())[part] = Dataset.from_list(chosen)
    return subsets


def _read_clustering(folder: Path, meta: Meta, most: int | None) -> Subsets:
    rows = [{"sentences": r["text"], "labels": r["label"]} for r in _rows(folder / "texts.parquet")]
    return {meta["languages"][0]: {"test": Dataset.from_list(_cut(rows, most))}}


def _read_retrieval(folder: Path, meta: Meta, most: int | None) -> Subsets:
    relevant: dict[str, dict[str, int]] = {}
    for r in _rows(folder / "qrels.parquet"):
        relevant.setdefault(r["query_id"], {})[r["corpus_id"]] = int(r["score"])
    corpus = [
        {"id": r["id"], "title": r["title"] or "", "text": r["text"]}
        for r in _rows(folder / "corpus.parquet")
    ]
    queries = [{"id": r["id"], "text": r["text"]} for r in _rows(folder / "queries.parquet")]
    corpus = _cut(corpus, most)
    kept = {document["id"] for document in corpus}
    # A question whose answers were cut away has nothing to find.
    relevant = {query: answers for query, answers in relevant.items() if answers.keys() <= kept}
    queries = [query for query in queries if query["id"] in relevant]
    split = {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list(queries),
        "relevant_docs": relevant,
        "top_ranked": None,
    }
    return {meta["languages"][0]: {"test": split}}


CLUSTERING = {"max_fraction_of_documents_to_embed": None, "max_document_to_embed": 2048}
"""What mteb's own arXiv clustering tasks use."""

TRAIN_TEXTS = 16
"""Training texts kept of each label and language: mteb draws 8 of them, ten times."""

MOST_CHARACTERS = 500_000
"""Corpora with longer documents in all are scored where a run names them: the needles and
passkeys of 2,048 tokens and more, and whole meetings, would take three quarters of a run."""

KINDS = {
    "sts": Kind(AbsTaskSTS, "STS", "cosine_spearman", _read_sts, "pairs", 4400),
    "pair_classification": Kind(
        AbsTaskPairClassification, "PairClassification", "cosine_ap", _read_pairs, "pairs", 4400
    ),
    "bitext": Kind(AbsTaskBitextMining, "BitextMining", "f1", _read_bitext, "pairs", 8000),
    "classification": Kind(
        AbsTaskClassification, "Classification", "accuracy", _read_classification, "test", 2000
    ),
    "clustering": Kind(
        AbsTaskClustering, "Clustering", "v_measure", _read_clustering, "texts", 1024, CLUSTERING
    ),
    "retrieval": Kind(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", _read_retrieval, "corpus", 300),
    "longdoc": Kind(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", _read_retrieval, "corpus", 300),
}

MAIN_SCORES = {"accuracy@1": "ndcg_at_1"}
"""The metric of meta.json, where the type does not decide it. With one relevant document a
query, nDCG@1 is the share of queries whose first document is the right one."""

POSITIVE = {"1", "entailment", "paraphrase"}
"""Labels of pairs that belong together; every other label is negative."""

TEXT_COLUMNS = {"sentence1", "sentence2", "text", "title", "sentences"}

RETIRED = {"sh": "hbs"}
"""Codes that ISO 639-1 gave up, and Tatoeba did not."""

SCRIPTS = {"arq": "Arab", "ary": "Arab"}
"""Scripts of languages for which mteb knows none; the others are taken as Latin."""


def _rows(path: Path) -> Rows:
    return pq.read_table(path).to_pylist()


def _cut(rows: Rows, most: int | None) -> Rows:
    """All rows, or where there are more than `most` an equal share of each language."""
    if most is None or len(rows) <= most:
        return rows
    languages = {row.get("lang") for row in rows}
    return _share(rows, most // len(languages), lambda row: row.get("lang"))


def _share(rows: Rows, share: int, group: Callable[[Mapping[str, Any]], object]) -> Rows:
    """`share` rows of each group, in their order: those of which a hash comes first."""
    numbers: dict[object, list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(group(row), []).append(number)
    keys = [hashlib.sha256(repr(sorted(row.items())).encode()).digest() for row in rows]
    kept = [i for part in numbers.values() for i in sorted(part, key=keys.__getitem__)[:share]]
    return [rows[i] for i in sorted(kept)]


def _cuts(folder: Path, kind: Kind) -> str:
    """What is left out of a task, in words; empty if nothing is."""
    words = []
    if pq.read_metadata(folder / f"{kind.table}.parquet").num_rows > kind.most:
        words.append(f"{kind.table} cut to {kind.most:,} rows, as many of each language")
    if kind.mteb_type == "Classification":
        words.append(f"train cut to {TRAIN_TEXTS} texts a label and language")
    return "; ".join(words)


def _is_long(folder: Path) -> bool:
    """Whether a retrieval task's documents, as many as are kept, exceed `MOST_CHARACTERS`."""
    if not (folder / "corpus.parquet").exists():
        return False
    texts = pq.read_table(folder / "corpus.parquet", columns=["text"])["text"].to_pylist()
    kept = min(1, KINDS["retrieval"].most / max(1, len(texts)))
    return kept * sum(map(len, texts)) > MOST_CHARACTERS


def _by_language(rows: Rows) -> Iterator[tuple[str, Rows]]:
    parts: dict[str, Rows] = {}
    for row in rows:
        parts.setdefault(row.pop("lang"), []).append(row)
    yield from sorted(parts.items())


def _languages(folder: Path, meta: Meta) -> dict[str, list[str]]:
    if meta["type"] != "bitext":
        return {lang: [language_script(lang)] for lang in meta["languages"]}
    table = pq.read_table(folder / "pairs.parquet", columns=["lang1", "lang2"]).to_pylist()
    pairs = {tuple(sorted(row.values(), key=lambda lang: (lang == "en", lang))) for row in table}
    return {"-".join(pair): [language_script(lang) for lang in pair] for pair in sorted(pairs)}


def language_script(lang: str) -> str:
    """A language as mteb names it: ISO 639-3 and script.

    >>> language_script("de"), language_script("zh-Hant")
    ('deu-Latn', 'zho-Hant')
    """
    code, _, script = lang.partition("-")
    code = RETIRED.get(code) or iso_mappings._get_iso1_to_iso3().get(code, code)
    known = iso_mappings._get_iso3_to_default_script()
    return f"{code}-{script or SCRIPTS.get(lang) or known.get(code, 'Latn')}"


def _fingerprint(folder: Path, cuts: str) -> str:
    """Twelve hex digits that change when a table does, or what is cut from it."""
    digest = hashlib.sha256(cuts.encode())
    for path in sorted(folder.glob("*.parquet")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _natural(name: str) -> tuple[str, int]:
    """Sorts needle-512 before needle-1024."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdigit() else (name, 0)
