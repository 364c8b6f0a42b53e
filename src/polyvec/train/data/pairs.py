"""Training rows from Parquet, and which of them each step reads.

Every choice is a function of a seed and a step number, so a resumed run reads exactly what the
uninterrupted one would have, and there is no position to save.

Axes in this file: N rows.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int, Int32
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Pairs of texts, each in a group whose members are never each other's negatives."""

    texts: list[str]
    """What the student reads."""

    partners: list[str]
    """What it belongs with: a translation, or the passage that answers."""

    groups: Int[np.ndarray, " N"]
    """Rows with one group mean the same thing."""

    langs: list[str]
    """The language of `texts`."""

    negatives: list[list[str]]
    """For each row, texts that look like its partner and are not: often none."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> "Rows":
        """Some of the rows, in the order given."""
        return Rows(
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
    most: int | None = None,
    seed: int = 0,
) -> Rows:
    """Rows of one Parquet file, at most `most` of each language, chosen by `seed`.

    The three names are columns. A file without a `group` column has a group a row.
    Raises FileNotFoundError or ValueError, naming the file, before anything is trained.
    """
    columns = {*pq.read_schema(file).names}
    if missing := {text, partner, lang} - columns:
        raise ValueError(f"{file} lacks the columns {sorted(missing)}; it has {sorted(columns)}")
    wanted = {text, partner, lang, *({"group", "negatives"} & columns)}
    whole = pq.read_table(file, columns=sorted(wanted))
    # Rows are left out before they become Python's, which takes most of the time.
    table = whole.take(_cap(whole[lang].to_pylist(), most, seed)).to_pydict()
    names = table.get("group") or range(len(table[text]))
    numbers: dict[object, int] = {}
    return Rows(
        texts=table[text],
        partners=table[partner],
        groups=np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64),
        langs=table[lang],
        negatives=table.get("negatives") or [[]] * len(names),
    )


def write_pairs(
    file: Path,
    *,
    texts: Sequence[str],
    partners: Sequence[str],
    negatives: Sequence[Sequence[str]],
    langs: Sequence[str],
    groups: Sequence[str],
) -> None:
    """Write what `read_pairs(file, lang="lang")` reads."""
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


def _cap(langs: Sequence[str], most: int | None, seed: int) -> list[int]:
    if most is None:
        return list(range(len(langs)))
    order = np.random.default_rng(seed).permutation(len(langs))
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for i in map(int, order):
        if seen[langs[i]] < most:
            seen[langs[i]] += 1
            kept.append(i)
    return sorted(kept)


def join(parts: Sequence[Rows]) -> Rows:
    """All rows one after another; groups of different parts stay different."""
    groups, offset = [], 0
    for part in parts:
        groups.append(part.groups + offset)
        offset += int(part.groups.max(initial=-1)) + 1
    return Rows(
        texts=[text for part in parts for text in part.texts],
        partners=[partner for part in parts for partner in part.partners],
        groups=np.concatenate(groups),
        langs=[lang for part in parts for lang in part.langs],
        negatives=[texts for part in parts for texts in part.negatives],
    )


def language_weights(
    langs: Sequence[str], exponent: float, shares: Mapping[str, float]
) -> Float[np.ndarray, " N"]:
    """How often to draw each row, so that a language of n rows fills n ** `exponent` of the run.

    `shares` sets a language's part of the whole outright; within a language all rows are alike.

    >>> language_weights(["en", "en", "de", "de", "de", "de"], 0.5, {"en": 0.5}).round(3).tolist()
    [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    """
    names, index, counts = np.unique(langs, return_inverse=True, return_counts=True)
    parts = counts.astype(float) ** exponent
    fixed = np.array([shares.get(str(name), np.nan) for name in names])
    free = np.isnan(fixed)
    parts[free] *= (1 - np.nansum(fixed)) / max(parts[free].sum(), 1e-9)
    parts[~free] = fixed[~free]
    return (parts / counts)[index]


def plan_batches(
    lengths: Sequence[int],
    weights: Float[np.ndarray, " N"],
    *,
    steps: int,
    batch_tokens: int,
    seed: int,
    pool: int = 32,
) -> list[Int[np.ndarray, " _rows"]]:
    """The rows of every step: texts of like length together, steps in random order.

    Rows are drawn by weight, each as evenly spread over the run as its weight allows. `pool`
    batches are sorted by length together, so a batch mixes sources but pads or splits little.
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths)
    share = weights / weights.sum()
    mean = float((share * sizes).sum())
    batches: list[np.ndarray] = []
    # Systematic sampling: an index repeats only once its weight has earned another turn.
    draws = int(1.1 * steps * batch_tokens / mean) + 1
    ticks = (np.arange(draws) + rng.random()) / draws
    order = rng.permutation(len(sizes))
    drawn = order[np.searchsorted(np.cumsum(share[order]), ticks).clip(max=len(order) - 1)]
    rng.shuffle(drawn)
    per_pool = max(1, int(pool * batch_tokens / mean))
    for start in range(0, len(drawn), per_pool):
        rows = drawn[start : start + per_pool]
        rows = rows[np.argsort(sizes[rows], kind="stable")]
        ends = np.searchsorted(np.cumsum(sizes[rows]), np.arange(1, pool * 2) * batch_tokens)
        found = [part for part in np.split(rows, np.unique(ends)) if len(part)]
        batches += [found[i] for i in rng.permutation(len(found))]
    return batches[:steps]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Texts with a class each."""

    texts: list[str]
    """What the model reads."""

    labels: Int[np.ndarray, " N"]
    """Classes as numbers; a class may have many languages."""

    langs: list[str]
    """The language of each text."""

    def __len__(self) -> int:
        return len(self.texts)


def read_labelled(file: Path) -> Labelled:
    """Rows of a Parquet file with the columns text, label and lang."""
    table = pq.read_table(file, columns=["text", "label", "lang"]).to_pydict()
    labels = np.unique(table["label"], return_inverse=True)[1]
    return Labelled(texts=table["text"], labels=labels, langs=table["lang"])


def classmates(labels: Int[np.ndarray, " N"], *, seed: int) -> Int[np.ndarray, " N"]:
    """For every row another row of its class, at random; itself where it is alone.

    >>> classmates(np.array([7, 8, 7]), seed=0).tolist()
    [2, 1, 0]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    mates = np.empty(len(labels), np.int64)
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        mates[members] = np.roll(members, 1)
    return mates


def bury(
    passages: Sequence[Int[np.ndarray, " _T"]],
    *,
    head: int,
    parts: Sequence[int] | Int[np.ndarray, " N"],
    seed: int,
    among: Sequence[Int[np.ndarray, " _T"]] | None = None,
) -> tuple[list[Int32[np.ndarray, " _D"]], list[tuple[int, int]]]:
    """Every passage among others, at random, and the span [start, end) where it lies.

    Passage i becomes one of `parts[i]` in its document; the others are drawn from `among`, or from
    the passages themselves. A passage's first `head` tokens (`<s>` and an instruction) and its last
    one (`</s>`) are the document's, whose first and last part own them, as in
    `Encoder.encode_chunks`.

    >>> texts = [np.int32([0, 7, 2]), np.int32([0, 8, 9, 2])]
    >>> documents, spans = bury(texts, head=1, parts=[2, 2], seed=1)
    >>> [document[start:end].tolist() for document, (start, end) in zip(documents, spans)]
    [[0, 7], [8, 9, 2]]
    """
    rng = np.random.default_rng(seed)
    pool = passages if among is None else among
    documents, spans = [], []
    for passage, count in zip(passages, parts, strict=True):
        place = int(rng.integers(count))
        others = [pool[i] for i in rng.integers(len(pool), size=count - 1).tolist()]
        bodies = [text[head:-1] for text in (*others[:place], passage, *others[place:])]
        bounds = head + np.cumsum([0, *map(len, bodies)])
        document = np.concatenate([passage[:head], *bodies, passage[-1:]]).astype(np.int32)
        documents.append(document)
        start = 0 if place == 0 else int(bounds[place])
        spans.append((start, len(document) if place == count - 1 else int(bounds[place + 1])))
    return documents, spans


def plan_classes(
    lengths: Sequence[int],
    labels: Int[np.ndarray, " N"],
    *,
    steps: int,
    batch_tokens: int,
    members: int,
    seed: int,
) -> list[Int[np.ndarray, " _rows"]]:
    """The rows of every step: `members` texts of each of many classes, so that none is alone.

    Every text is read once before any is read again, but for classes' last few.
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths)
    batches: list[np.ndarray] = []
    while len(batches) < steps:
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        classes = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        groups = [
            rows[start : start + members]
            for rows in classes
            for start in range(0, len(rows) - members + 1, members)
        ]
        if not groups:
            raise ValueError(f"no class has {members} texts, so there is nothing to tell apart")
        turns = [groups[i] for i in rng.permutation(len(groups))]
        ends = np.cumsum([sizes[group].sum() for group in turns]) // batch_tokens
        for number in np.unique(ends):
            batches.append(np.concatenate([turns[i] for i in np.flatnonzero(ends == number)]))
    return batches[:steps]


def token_ids(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_tokens: int, prompt: str = ""
) -> list[Int32[np.ndarray, " _T"]]:
    """Each text's tokens behind `prompt`, cut to `max_tokens` with `</s>` kept."""
    found = []
    for start in range(0, len(texts), 50_000):
        part = [prompt + text for text in texts[start : start + 50_000]]
        for encoding in tokenizer.encode_batch_fast(part):
            ids = np.array(encoding.ids, np.int32)
            found.append(
                ids if len(ids) <= max_tokens else np.append(ids[: max_tokens - 1], ids[-1])
            )
    return found


def plan_pairs(
    left: Sequence[Int[np.ndarray, " _T"]],
    right: Sequence[Int[np.ndarray, " _T"]],
    weights: Float[np.ndarray, " N"],
    *,
    steps: int,
    batch_tokens: int,
    seed: int,
) -> list[Int[np.ndarray, " _rows"]]:
    """`plan_batches` for two texts a row, whose lengths add up."""
    lengths = [len(one) + len(two) for one, two in zip(left, right, strict=True)]
    return plan_batches(lengths, weights, steps=steps, batch_tokens=batch_tokens, seed=seed)


def interleave(
    plans: Sequence[Sequence[Int[np.ndarray, " _rows"]]], sizes: Sequence[int], *, seed: int
) -> list[Int[np.ndarray, " _rows"]]:
    """The steps of several plans in random order, one source a step.

    Plan i counts rows from the start of source i, which has `sizes[i]` rows; the result counts
    them in the sources joined.
    """
    offsets = np.cumsum([0, *sizes[:-1]])
    steps = [rows + off for plan, off in zip(plans, offsets, strict=True) for rows in plan]
    return [steps[i] for i in np.random.default_rng(seed).permutation(len(steps))]
