"""Pairs of texts and labelled texts: reading, writing, joining.

Axes in this file: N rows.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from polyvec.records import BadRow, Report, open_parquet, warn


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of texts. Each pair belongs to a group, whose members are never negatives."""

    texts: list[str]
    """The first text of each pair, such as a query or a sentence."""

    partners: list[str]
    """The second text of each pair, such as the passage that answers, or a translation."""

    groups: Int[np.ndarray, " N"]
    """Pairs with the same group number mean the same thing."""

    langs: list[str]
    """The language of each pair's first text."""

    negatives: list[list[str]]
    """Texts that resemble the partner of each pair and are wrong; often none."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> "Pairs":
        """The pairs with these row numbers, in the given order."""
        return Pairs(
            texts=[self.texts[i] for i in rows],
            partners=[self.partners[i] for i in rows],
            groups=self.groups[list(rows)],
            langs=[self.langs[i] for i in rows],
            negatives=[self.negatives[i] for i in rows],
        )


def read_pairs(
    file: Path,
    *,
    text: str = "query",
    partner: str = "positive",
    lang: str = "query_lang",
    max_per_language: int | None = None,
    seed: int = 0,
    report: Report = warn,
) -> Pairs:
    """Read pairs from a Parquet file, at most `max_per_language` of each language.

    `seed` decides which pairs of a language are kept. `text`, `partner` and `lang` name the
    columns. The columns `group` and `negatives` are read if they exist; a pair without a group is
    a group of its own. A pair with a missing or an empty text is left out, and `report` is told of
    it. Raises ValueError for a file that is missing or damaged, and for a missing column.
    """
    with open_parquet(file) as opened:
        columns = {*opened.schema_arrow.names}
        if missing := {text, partner, lang} - columns:
            has = sorted(columns)
            raise ValueError(f"{file} lacks the columns {sorted(missing)}; it has {has}")
        wanted = {text, partner, lang, *({"group", "negatives"} & columns)}
        all_rows = opened.read(columns=sorted(wanted))
    # Rows are dropped before they become Python objects, which takes most of the time.
    all_rows = all_rows.filter(_find_usable(all_rows, (text, partner), file, report))
    kept = _cap_languages(all_rows[lang].to_pylist(), max_per_language, seed)
    table = all_rows.take(pa.array(kept, pa.int64())).to_pydict()
    names = table.get("group") or [None] * len(kept)
    numbers: dict[object, int] = {}
    groups = [
        numbers.setdefault((i, None) if name is None else name, len(numbers))
        for i, name in enumerate(names)
    ]
    negatives = table.get("negatives") or [None] * len(kept)
    return Pairs(
        texts=table[text],
        partners=table[partner],
        groups=np.array(groups, np.int64),
        langs=table[lang],
        negatives=[[text for text in texts or [] if text and text.strip()] for texts in negatives],
    )


def _find_usable(table: pa.Table, columns: Sequence[str], file: Path, report: Report) -> pa.Array:
    """Whether each row has a text that is not blank in all of the columns."""
    usable = np.ones(len(table), bool)
    for name in columns:
        texts = table[name].cast(pa.string())
        trimmed = pc.call_function("utf8_trim_whitespace", [texts])
        lengths = pc.call_function("utf8_length", [trimmed]).fill_null(0)
        good = np.asarray(lengths) > 0
        for i in np.flatnonzero(usable & ~good).tolist():
            reason = f"{name} is empty" if texts[i].is_valid else f"{name} is missing"
            report(BadRow(str(file), i + 1, reason, row=table.slice(i, 1).to_pylist()[0]))
        usable &= good
    return pa.array(usable)


def write_pairs(
    file: Path,
    *,
    texts: Sequence[str],
    partners: Sequence[str],
    negatives: Sequence[Sequence[str]],
    langs: Sequence[str],
    groups: Sequence[str],
) -> None:
    """Write a Parquet file that `read_pairs(file, lang="lang")` reads."""
    string = pa.string()
    columns = {
        "query": pa.array(texts, string),
        "positive": pa.array(partners, string),
        "negatives": pa.array(negatives, pa.list_(string)),
        "lang": pa.array(langs, string),
        "group": pa.array(groups, string),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, compression="zstd")


def _cap_languages(langs: Sequence[str], max_per_language: int | None, seed: int) -> list[int]:
    """Row numbers, ascending, of at most `max_per_language` random rows of each language."""
    if max_per_language is None:
        return list(range(len(langs)))
    order = np.random.default_rng(seed).permutation(len(langs))
    counts: dict[str, int] = defaultdict(int)
    kept = []
    for i in map(int, order):
        if counts[langs[i]] < max_per_language:
            counts[langs[i]] += 1
            kept.append(i)
    return sorted(kept)


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """All pairs, part after part. Groups of different parts remain different."""
    groups, offset = [], 0
    for part in parts:
        groups.append(part.groups + offset)
        offset += int(part.groups.max(initial=-1)) + 1
    return Pairs(
        texts=[text for part in parts for text in part.texts],
        partners=[partner for part in parts for partner in part.partners],
        groups=np.concatenate(groups),
        langs=[lang for part in parts for lang in part.langs],
        negatives=[texts for part in parts for texts in part.negatives],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTexts:
    """Texts with one label each."""

    texts: list[str]
    """The texts."""

    labels: Int[np.ndarray, " N"]
    """The label of each text as a number. Texts of one label may be in many languages."""

    langs: list[str]
    """The language of each text."""

    def __len__(self) -> int:
        return len(self.texts)


def read_labelled_texts(file: Path) -> LabelledTexts:
    """Read a Parquet file with the columns `text`, `label` and `lang`."""
    table = pq.read_table(file, columns=["text", "label", "lang"]).to_pydict()
    labels = np.unique(table["label"], return_inverse=True)[1]
    return LabelledTexts(texts=table["text"], labels=labels, langs=table["lang"])


def sample_same_label(labels: Int[np.ndarray, " N"], *, seed: int) -> Int[np.ndarray, " N"]:
    """Number of another random row with the same label, for every row.

    A row whose label occurs once gets its own number.

    >>> sample_same_label(np.array([7, 8, 7]), seed=0).tolist()
    [2, 1, 0]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    partners = np.empty(len(labels), np.int64)
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        partners[members] = np.roll(members, 1)
    return partners
