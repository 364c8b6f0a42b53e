"""A folder of tables becomes an mteb task, so that mteb's own code computes the score.

`task_kinds` describes the folders and their tables. The languages of a folder become mteb's
subsets: each is scored separately, and the score of the task is the mean over its languages.

Large tables are shortened (`FolderFormat.max_rows`, `TRAIN_TEXTS`). Tasks whose documents exceed
`MAX_CHARACTERS` run only if they are requested by name. With these limits all tasks run in
minutes on two CPU cores. Rows are chosen by a hash of their content, so every model sees the same
rows. The description in the task's mteb metadata lists what was left out, and the task's revision
changes whenever that choice changes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pyarrow.parquet as pq
from mteb.abstasks import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.languages import iso_mappings

from polyvec.eval.task_kinds import (
    KINDS,
    TEXT_COLUMNS,
    FolderFormat,
    Meta,
    folder_formats,
    main_metric,
)

MAX_CHARACTERS = 500_000
"""Retrieval tasks whose documents are longer in total only run if they are named. The needles and
passkeys of 2,048 tokens and more, and whole meetings, would take three quarters of a run."""

RETIRED_CODES = {"sh": "hbs"}
"""Language codes that ISO 639-1 withdrew and Tatoeba still uses."""

SCRIPTS = {"arq": "Arab", "ary": "Arab"}
"""Scripts of languages for which mteb lists none. Other unlisted languages count as Latin."""


def local_tasks(data: Path, names: Sequence[str] = (), *, whole: bool = False) -> list[AbsTask]:
    """Return the tasks in `data/eval` (or in `data` itself), sorted by name.

    `names` selects tasks by name (`tydiqa-*` too) or by type (`sts`, `retrieval`). Without names,
    all tasks are returned except those with very long documents. `whole` includes those as well,
    and shortens no table. Tables are only read when mteb loads a task. Raises ValueError if there
    is no task folder, or if a name selects no task.
    """
    root = data / "eval" if (data / "eval").is_dir() else data
    metas = {path.parent: json.loads(path.read_text()) for path in root.glob("*/meta.json")}
    if not metas:
        raise ValueError(
            f"{root} contains no task folder: a task folder holds meta.json (name, type, metric, "
            "languages) and the Parquet tables of its type, for example pairs.parquet with the "
            "columns text1, text2, score and lang for the type sts"
        )
    selected: dict[Path, Meta] = {}
    if not names:
        selected = {f: m for f, m in metas.items() if whole or not _is_long(f, m)}
    for name in names:
        matching = {f: m for f, m in metas.items() if fnmatch(m["name"], name) or m["type"] == name}
        if not matching:
            known = ", ".join(
                sorted({word for m in metas.values() for word in (m["name"], m["type"])})
            )
            raise ValueError(f"no task {name!r} in {root}; it has {known}")
        selected |= matching
    order = sorted(selected.items(), key=lambda item: _natural(item[1]["name"]))
    return [make_task(folder, meta, whole=whole) for folder, meta in order]


def make_task(folder: Path, meta: Meta, *, whole: bool = False) -> AbsTask:
    """Return one folder as an mteb task. `whole` keeps all rows of its tables.

    Raises ValueError if the folder's type is unknown.
    """
    kind = KINDS.get(meta["type"])
    if kind is None or kind.folder is None:
        types = ", ".join(folder_formats())
        raise ValueError(f"{folder}: type {meta['type']!r} is not one of {types}")
    format = kind.folder
    max_rows = None if whole else format.max_rows
    cuts = "" if whole else _describe_cuts(folder, format)

    def load_data(self: AbsTask, num_proc: int | None = None, *, timer: object = None) -> None:
        self.dataset = format.read(folder, meta, max_rows)
        self.hf_subsets = sorted(self.dataset)
        self.data_loaded = True

    metadata = TaskMetadata(
        name=meta["name"],
        description=". ".join(filter(None, [meta.get("note") or meta["name"], cuts])),
        type=kind.mteb_type,
        category="t2t",
        main_score=main_metric(format, meta),
        eval_splits=["test"],
        eval_langs={
            "-".join(languages): [language_script(lang) for lang in languages]
            for languages in format.subset_languages(folder, meta)
        },
        dataset={"path": f"local/{meta['name']}", "revision": _fingerprint(folder, cuts)},
    )
    members = {"metadata": metadata, "load_data": load_data, **format.settings}
    return type(format.mteb_class.__name__.removeprefix("AbsTask"), (format.mteb_class,), members)()


def task_texts(task: AbsTask) -> Iterator[str]:
    """Yield every text of a loaded task, including its training texts."""
    assert task.dataset is not None, "load_data first"
    for parts in task.dataset.values():
        for part in parts.values():
            for table in part.values() if isinstance(part, dict) else [part]:
                for column in TEXT_COLUMNS & set(getattr(table, "column_names", ())):
                    yield from table[column]


def language_script(lang: str) -> str:
    """Return a language code in mteb's form: ISO 639-3 and script.

    >>> language_script("de"), language_script("zh-Hant")
    ('deu-Latn', 'zho-Hant')
    """
    code, _, script = lang.partition("-")
    code = RETIRED_CODES.get(code) or iso_mappings._get_iso1_to_iso3().get(code, code)
    known = iso_mappings._get_iso3_to_default_script()
    return f"{code}-{script or SCRIPTS.get(lang) or known.get(code, 'Latn')}"


def _describe_cuts(folder: Path, format: FolderFormat) -> str:
    """Describe the rows that are left out of a task; empty if there are none.

    The description is part of the fingerprint. A change of its words therefore makes stored scores
    stale.
    """
    sentences = []
    if pq.read_metadata(folder / f"{format.table}.parquet").num_rows > format.max_rows:
        sentences.append(
            f"{format.table} cut to {format.max_rows:,} rows, as many of each language"
        )
    if format.further_cut:
        sentences.append(format.further_cut)
    return "; ".join(sentences)


def _is_long(folder: Path, meta: Meta) -> bool:
    """Tell whether the documents of a retrieval task exceed `MAX_CHARACTERS` after the cut."""
    kind = KINDS.get(meta["type"])
    if not (folder / "corpus.parquet").exists() or kind is None or kind.folder is None:
        return False
    texts = pq.read_table(folder / "corpus.parquet", columns=["text"])["text"].to_pylist()
    kept = min(1, kind.folder.max_rows / max(1, len(texts)))
    return kept * sum(map(len, texts)) > MAX_CHARACTERS


def _fingerprint(folder: Path, cuts: str) -> str:
    """Return twelve hex digits that change if a table changes, or the rows that are left out."""
    digest = hashlib.sha256(cuts.encode())
    for path in sorted(folder.glob("*.parquet")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _natural(name: str) -> tuple[str, int]:
    """Return a key that sorts needle-512 before needle-1024."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdigit() else (name, 0)
