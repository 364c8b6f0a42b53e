"""Reading the files of a task folder. Every mistake in them gets a sentence with file and column.

`meta.json` describes the task. A table is a file of rows in any form that `polyvec.records` reads:
NAME.parquet, NAME.jsonl, NAME.csv and so on.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from polyvec.records import SUFFIXES, Columns, as_number, as_text, read_rows, refuse

Rows = list[dict[str, Any]]

Meta = Mapping[str, Any]
"""The content of a folder's `meta.json`: name, type, languages and metric."""

META_FILE = "meta.json"

TABLE_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != ".txt")

META_EXAMPLE = '{"name": "my-task", "type": "sts", "languages": ["en"]}'


def read_meta(folder: Path) -> Meta:
    """Read the description of a task. The name is the folder's, unless it has another.

    Raises ValueError with the file and the field if something is missing or of the wrong type.
    """
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path} must hold a JSON object, such as {META_EXAMPLE}")
    meta = {"name": folder.name, "metric": ""} | meta
    for field in ("name", "type", "metric"):
        if not isinstance(meta.get(field), str) or (field != "metric" and not meta[field].strip()):
            raise ValueError(f"{path}: {field!r} must be a text, as in {META_EXAMPLE}")
    if any(character in "/\\" or not character.isprintable() for character in meta["name"]):
        raise ValueError(f"{path}: 'name' names files of results, so it must not hold a slash")
    languages = meta.get("languages")
    if not languages or not isinstance(languages, list):
        raise ValueError(f"{path}: 'languages' must be a list of codes, as in {META_EXAMPLE}")
    for language in languages:
        if not isinstance(language, str) or not language.strip():
            raise ValueError(f"{path}: 'languages' holds {language!r}, which is not a code")
    return meta


def find_table(folder: Path, name: str) -> Path:
    """Return the file of a table, whatever its form.

    Raises ValueError if there is none, or more than one.
    """
    paths = [path for path in list_tables(folder) if path.stem == name]
    if not paths:
        endings = ", ".join(TABLE_SUFFIXES)
        raise ValueError(f"{folder} lacks the table {name}, a file {name} with one of {endings}")
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise ValueError(f"{folder} holds the table {name} twice: remove one of {names}")
    return paths[0]


def list_tables(folder: Path) -> list[Path]:
    """Return the files of a folder that can be tables, sorted by name."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    return sorted(path for path in files if path.name != META_FILE)


def read_table(folder: Path, name: str, columns: Columns) -> Rows:
    """Return the rows of a table.

    Raises ValueError for the first row that is wrong, with the file, the row and the column, and
    for a table that is empty.
    """
    path = find_table(folder, name)
    rows = list(read_rows(path, columns, report=refuse))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def fill_languages(rows: Rows, folder: Path, name: str, languages: Collection[str]) -> Rows:
    """Return rows that all have a language that `meta.json` lists.

    A row without one is in the only language of the task. Raises ValueError if there are several,
    or if a row has another language.
    """
    path = find_table(folder, name)
    for row in rows:
        if row["lang"] is None:
            if len(languages) > 1:
                raise ValueError(
                    f"{path} needs the column lang in every row, because {folder / META_FILE} "
                    f"lists {len(languages)} languages"
                )
            row["lang"] = next(iter(languages))
        if row["lang"] not in languages:
            raise ValueError(
                f"{path}: the column lang holds {row['lang']!r}, which the languages of "
                f"{folder / META_FILE} do not list"
            )
    return rows


def check_unique(rows: Rows, folder: Path, name: str) -> None:
    """Raise ValueError if two rows of a table have the same id."""
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            path = find_table(folder, name)
            raise ValueError(f"{path}: the column id holds {row['id']!r} twice")
        seen.add(row["id"])


def as_whole_number(value: Any) -> int:
    """A whole number; a text file spells it as a text."""
    number = as_number(value)
    if not number.is_integer():
        raise ValueError(f"is {value!r}, must be a whole number")
    return int(number)


def one_of(classes: Mapping[str, int]) -> Callable[[Any], int]:
    """Return a function that reads a label of pairs: the class of one of these spellings."""

    def as_class(value: Any) -> int:
        whole = isinstance(value, float) and value.is_integer()
        spelling = as_text(str(int(value) if whole else value)) if value is not None else ""
        found = classes.get(spelling.lower())
        if found is None:
            raise ValueError(f"is {value!r}, must be one of {', '.join(classes)}")
        return found

    return as_class


def count_rows(path: Path, columns: Columns) -> int:
    """Return the number of rows of a table, from the metadata if it is Parquet."""
    if path.suffix.lower() == ".parquet":
        try:
            return pq.read_metadata(path).num_rows
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a whole Parquet file: {error}") from error
    return sum(1 for _ in read_rows(path, columns, report=refuse))


def fingerprint_tables(folder: Path, *facts: str) -> str:
    """Return twelve hex digits that change if a table changes, or one of `facts`."""
    digest = hashlib.sha256("\0".join(facts).encode())
    for path in list_tables(folder):
        with path.open("rb") as file:
            contents = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"\0{path.name}\0{contents}".encode())
    return digest.hexdigest()[:12]
