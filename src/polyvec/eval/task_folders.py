"""A folder of tables becomes an mteb task, so that mteb's own code computes the score.

`task_kinds` describes the folders and their tables. The languages of a folder become mteb's
subsets: each is scored separately, and the score of the task is the mean over its languages.

By default, every row of every table is scored. With `whole=False`, large tables are shortened
(`FolderFormat.max_rows`, `TRAIN_TEXTS`), and tasks whose documents exceed `MAX_CHARACTERS` run only
if they are requested by name, so that all tasks run in minutes on two CPU cores. Rows are chosen by
a hash of their content, so every model sees the same rows. `left_out` says what a task lacks; the
task's mteb metadata and its scores say it too. The task's revision changes with it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from mteb.abstasks import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.languages import check_language_code, iso_mappings

from polyvec.eval.task_kinds import (
    KINDS,
    TEXT_COLUMNS,
    FolderFormat,
    folder_formats,
    main_metric,
)
from polyvec.eval.task_readers import DOCUMENTS
from polyvec.eval.task_tables import (
    META_FILE,
    Meta,
    count_rows,
    find_table,
    fingerprint_tables,
    read_meta,
    read_table,
)

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 500_000
"""With `whole=False`, retrieval tasks whose documents are longer in total only run if they are
named. The needles and passkeys of 2,048 tokens and more, and whole meetings, would take three
quarters of a run."""

RETIRED_CODES = {"sh": "hbs"}
"""Language codes that ISO 639-1 withdrew and Tatoeba still uses."""

SCRIPTS = {"arq": "Arab", "ary": "Arab"}
"""Scripts of languages for which mteb lists none. Other unlisted languages count as Latin."""


def local_tasks(
    data: Path,
    names: Sequence[str] = (),
    *,
    whole: bool = True,
    report: Callable[[str], object] = logger.warning,
) -> list[AbsTask]:
    """Return the tasks in `data/eval` (or in `data` itself), sorted by name.

    `names` selects tasks by name (`tydiqa-*` too) or by type (`sts`, `retrieval`). Without names,
    all tasks are returned. `whole=False` shortens large tables and leaves out tasks with very long
    documents; `report` gets a sentence about each. Tables are only checked when mteb loads a task.
    Raises ValueError if there is no task folder, if one of them cannot be read, or if a name
    selects no task.
    """
    root = _task_root(data)
    metas = _read_metas(root)
    if not metas:
        raise ValueError(
            f"{root} contains no task folder: a task folder holds {META_FILE} (name, type, metric, "
            "languages) and the tables of its type, for example pairs.parquet with the columns "
            "text1, text2, score and lang for the type sts; docs/evaluation.md has an example"
        )
    selected: dict[Path, Meta] = {}
    if not names:
        long = [] if whole else [folder for folder, meta in metas.items() if _is_long(folder, meta)]
        for folder in long:
            report(
                f"left out {metas[folder]['name']}: its documents have more than "
                f"{MAX_CHARACTERS:,} characters; name it with --tasks, or score whole tables"
            )
        selected = {folder: meta for folder, meta in metas.items() if folder not in long}
    for name in names:
        matching = {f: m for f, m in metas.items() if fnmatch(m["name"], name) or m["type"] == name}
        if not matching:
            known = ", ".join(
                sorted({word for m in metas.values() for word in (m["name"], m["type"])})
            )
            raise ValueError(f"no task {name!r} in {root}; it has {known}")
        selected |= matching
    if not selected:
        raise ValueError(f"no task of {root} is left to score")
    order = sorted(selected.items(), key=lambda item: _natural(item[1]["name"]))
    tasks = [make_task(folder, meta, whole=whole) for folder, meta in order]
    for task in tasks:
        if left_out(task):
            report(f"{task.metadata.name}: {left_out(task)}; without --no-whole, all is scored")
    return tasks


def task_names(data: Path) -> set[str]:
    """Return the names of the tasks in `data/eval`, or in `data` itself."""
    return {meta["name"] for meta in _read_metas(_task_root(data)).values()}


def _task_root(data: Path) -> Path:
    return data / "eval" if (data / "eval").is_dir() else data


def _read_metas(root: Path) -> dict[Path, Meta]:
    """Return the descriptions of all task folders. Raises ValueError if two have one name."""
    metas = {path.parent: read_meta(path.parent) for path in sorted(root.glob(f"*/{META_FILE}"))}
    folders: dict[str, Path] = {}
    for folder, meta in metas.items():
        other = folders.setdefault(meta["name"], folder)
        if other != folder:
            raise ValueError(
                f"{other} and {folder} both hold the task {meta['name']!r}: rename one"
            )
    return metas


def make_task(folder: Path, meta: Meta, *, whole: bool = True) -> AbsTask:
    """Return one folder as an mteb task. `whole` keeps all rows of its tables.

    Raises ValueError if the folder's type, its metric or one of its languages is unknown.
    """
    kind = KINDS.get(meta["type"])
    if kind is None or kind.folder is None:
        types = ", ".join(folder_formats())
        raise ValueError(
            f"{folder / META_FILE}: 'type' is {meta['type']!r}, which is not one of {types}"
        )
    format = kind.folder
    try:
        metric = main_metric(kind, meta)
    except ValueError as error:
        raise ValueError(f"{folder / META_FILE}: {error}") from None
    max_rows = None if whole else format.max_rows
    cuts = "" if whole else _describe_cuts(folder, format)

    def load_data(self: AbsTask, num_proc: int | None = None, *, timer: object = None) -> None:
        self.dataset = format.read(folder, meta, max_rows)
        self.hf_subsets = sorted(self.dataset)
        self.data_loaded = True

    languages = format.subset_languages(folder, meta)
    metadata = TaskMetadata(
        name=meta["name"],
        description=". ".join(filter(None, [str(meta.get("note") or meta["name"]), cuts])),
        type=kind.mteb_type,
        category="t2t",
        main_score=metric,
        eval_splits=["test"],
        eval_langs={
            "-".join(subset): [_checked_language(folder, lang) for lang in subset]
            for subset in languages
        },
        dataset={
            "path": f"local/{meta['name']}",
            "revision": fingerprint_tables(folder, cuts, meta["type"], metric, *meta["languages"]),
        },
    )
    members = {
        "metadata": metadata,
        "load_data": load_data,
        "left_out": cuts,
        **format.settings,
    }
    return type(format.mteb_class.__name__.removeprefix("AbsTask"), (format.mteb_class,), members)()


def left_out(task: AbsTask) -> str:
    """Describe the rows of its tables that a task lacks; empty if it has all of them."""
    return getattr(task, "left_out", "")


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


def _checked_language(folder: Path, lang: str) -> str:
    """Return a language code in mteb's form. Raises ValueError if there is no such language."""
    try:
        code = language_script(lang)
        check_language_code(code)
    except ValueError as error:
        raise ValueError(
            f"{folder}: the language {lang!r} is no ISO 639 code, such as en or zh-Hant"
        ) from error
    return code


def _describe_cuts(folder: Path, format: FolderFormat) -> str:
    """Describe the rows that are left out of a task; empty if there are none.

    The description is part of the fingerprint. A change of its words therefore makes stored scores
    stale.
    """
    sentences = []
    if count_rows(find_table(folder, format.table), format.columns) > format.max_rows:
        sentences.append(
            f"{format.table} cut to {format.max_rows:,} rows, as many of each language"
        )
    if format.further_cut:
        sentences.append(format.further_cut)
    return "; ".join(sentences)


def _is_long(folder: Path, meta: Meta) -> bool:
    """Tell whether the documents of a retrieval task exceed `MAX_CHARACTERS` after the cut."""
    kind = KINDS.get(meta["type"])
    if kind is None or kind.folder is None or kind.folder.table != "corpus":
        return False
    texts = [row["text"] for row in read_table(folder, "corpus", DOCUMENTS)]
    kept = min(1, kind.folder.max_rows / len(texts))
    return kept * sum(map(len, texts)) > MAX_CHARACTERS


def _natural(name: str) -> tuple[str, int]:
    """Return a key that sorts needle-512 before needle-1024."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdigit() else (name, 0)
