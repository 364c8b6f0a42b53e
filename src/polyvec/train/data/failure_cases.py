"""Examples of four failure cases of embedding models (arXiv:2409.10173, section 4.3.4).

    syntax     a document has the words of the question, but is about something else
    entities   a name is partly right, or is also a common word
    polar      the answer to the question is yes or no
    quality    poor documents repeat the question, and one document answers it

The paper generates them with a language model. This module makes them from templates about a small
invented world, and from pairs that the caller passes. Every label is right by construction: each
document stores the fact that it states, and answers only the questions about this fact.

There are two sides, "train" and "eval". They have no name, template or given group in common.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyvec.train.data.failure_words import EVAL, TRAIN, Words
from polyvec.train.data.pairs import Pairs, write_pairs

Side = Literal["train", "eval"]
Fact = tuple[str, ...]
T = TypeVar("T")

NUM_NEGATIVES = 7
"""Negatives per example, as in the paper."""

POLAR = re.compile(
    r"(is|are|was|were|do|does|did|can|could|has|have|had|will|would|should) (?!.* or )", re.I
)
NAME = re.compile(r"(?<!^)\b[A-Z][\w'-]+(?: [A-Z][\w'-]+)+")
"""Matches two or more capitalised words that are not at the start of a question."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the fact that it states; an empty fact if it states nothing."""

    text: str
    fact: Fact = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A question, a document with the answer, and documents that only resemble it."""

    query: str
    positive: Document
    negatives: tuple[Document, ...]
    lang: str = "en"


def make_examples(
    case: str, side: Side, *, num: int, seed: int = 0, given: Pairs | None = None
) -> list[Example]:
    """Make at most `num` examples of one case, in random order. The result is deterministic.

    `given` are pairs such as those of SQuAD. They provide questions for poor documents (quality),
    questions with the answer yes or no (polar), and passages in which a name is replaced
    (entities). A fifth of their groups is used for the side "eval". If there are enough, half of
    the examples come from `given`.
    """
    words = TRAIN if side == "train" else EVAL
    rng = np.random.default_rng([seed, CASES.index(case), side == "eval"])
    templated = _shuffled(list(_FROM_TEMPLATES[case](words, rng)), rng)
    from_pairs: list[Example] = []
    if given is not None and case in _FROM_PAIRS:
        own = given.take(_rows_of(given, side))
        from_pairs = _shuffled(list(_FROM_PAIRS[case](own, words, rng)), rng)
    half = max(num // 2, num - len(templated))
    chosen = from_pairs[:half]
    return _shuffled(chosen + templated[: num - len(chosen)], rng)


def _syntax(words: Words, rng: np.random.Generator) -> Iterator[Example]:
    groups = [f"the {a} {n}" for a, n in product(words.group_adjectives, words.group_nouns)]
    for (verb, converse), setting in product(words.relations, words.settings):
        # Everyone acts on the next one in a ring, and the one before acts on them.
        ring = [groups[i] for i in rng.permutation(len(groups))]
        for i in range(len(ring)):
            a, b, c, d = (ring[(i + k) % len(ring)] for k in range(4))
            slots = {"a": a, "b": b, "c": c, "d": d, "setting": setting}
            slots |= {"verb": verb, "converse": converse}
            wrong = [
                Document(_sentence(template, slots), ("relation", verb, slots[patient], setting))
                for template, patient in words.reversals
            ]
            wrong += [Document(_sentence(template, slots)) for template in words.who_dodges]
            yield Example(
                _sentence(_pick(words.who_questions, rng), slots),
                Document(
                    _sentence(_pick(words.who_answers, rng), slots),
                    ("relation", verb, b, setting),
                ),
                tuple(wrong[:NUM_NEGATIVES]),
            )


def _entities(words: Words, rng: np.random.Generator) -> Iterator[Example]:
    people = [f"{first} {last}" for first, last in product(words.firsts, words.lasts)]
    home = {name: _pick(words.towns, rng) for name in people}
    trade = {name: _pick(words.trades, rng) for name in people}

    def answer(name: str) -> Document:
        slots = {"name": name, "town": home[name], "trade": trade[name]}
        return Document(_sentence(_pick(words.birth_answers, rng), slots), ("birth", name))

    for name in people:
        first, last = name.split()
        slots = {"name": name, "trade": trade[name]}
        namesakes = [f"{_pick(words.firsts, rng, but=first)} {last}" for _ in range(2)]
        namesakes += [f"{first} {_pick(tuple(words.lasts), rng, but=last)}" for _ in range(2)]
        wrong = [answer(other) for other in dict.fromkeys(namesakes)]
        wrong.append(Document(words.lasts[last]))
        wrong += [Document(_sentence(template, slots)) for template in words.other_facts]
        yield Example(
            _sentence(_pick(words.birth_questions, rng), slots),
            answer(name),
            tuple(wrong[:NUM_NEGATIVES]),
        )


def _polar(words: Words, rng: np.random.Generator) -> Iterator[Example]:
    def answer(thing: str, act: str) -> Document:
        can = words.abilities[thing][act]
        template = _pick(words.yes_answers if can else words.no_answers, rng)
        return Document(_sentence(template, {"thing": thing, "act": act}), ("polar", thing, act))

    for thing, acts in words.abilities.items():
        for act, question in product(acts, words.polar_questions):
            slots = {"thing": thing, "act": act}
            others = [other for other in words.abilities if act in words.abilities[other]]
            wrong = [answer(thing, other) for other in acts if other != act]
            wrong += [answer(o, act) for o in _shuffled(others, rng)[:3] if o != thing]
            wrong += [Document(_sentence(template, slots)) for template in words.dodges]
            yield Example(
                _sentence(question, slots), answer(thing, act), tuple(wrong[:NUM_NEGATIVES])
            )


def _quality(words: Words, rng: np.random.Generator) -> Iterator[Example]:
    for make in (_syntax, _entities, _polar):
        for example in make(words, rng):
            yield Example(example.query, example.positive, _echoes(example.query, words, rng))


def _quality_of(rows: Pairs, words: Words, rng: np.random.Generator) -> Iterator[Example]:
    for i in range(len(rows)):
        query = rows.texts[i]
        yield Example(query, _given(rows, i), _echoes(query, words, rng), rows.langs[i])


def _polar_of(rows: Pairs, words: Words, rng: np.random.Generator) -> Iterator[Example]:
    for i in range(len(rows)):
        if POLAR.match(rows.texts[i]) and rows.negatives[i]:
            wrong = tuple(Document(text) for text in rows.negatives[i][:NUM_NEGATIVES])
            yield Example(rows.texts[i], _given(rows, i), wrong, rows.langs[i])


def _entities_of(rows: Pairs, words: Words, rng: np.random.Generator) -> Iterator[Example]:
    named = [
        (i, match.group())
        for i in range(len(rows))
        if (match := NAME.search(rows.texts[i])) and match.group() in rows.partners[i]
    ]
    ends = sorted({name.split()[-1] for _, name in named})
    used: set[int] = set()
    for i, name in named:
        # One example per passage: with one name replaced, the passage might still answer a
        # question about another name.
        if int(rows.groups[i]) in used:
            continue
        used.add(int(rows.groups[i]))
        wrong = []
        for end in [ends[j] for j in rng.permutation(len(ends))[: NUM_NEGATIVES + 1]]:
            other = " ".join([*name.split()[:-1], end])
            if other != name and other not in rows.partners[i]:
                # This is the same passage about somebody with half of that name.
                wrong.append(Document(rows.partners[i].replace(name, other)))
        if wrong:
            negatives = tuple(wrong[:NUM_NEGATIVES])
            yield Example(rows.texts[i], _given(rows, i), negatives, rows.langs[i])


CASES = ("syntax", "entities", "polar", "quality")
_FROM_TEMPLATES = {"syntax": _syntax, "entities": _entities, "polar": _polar, "quality": _quality}
_FROM_PAIRS = {"entities": _entities_of, "polar": _polar_of, "quality": _quality_of}


def _given(rows: Pairs, i: int) -> Document:
    return Document(rows.partners[i], ("given", str(rows.groups[i])))


def _rows_of(rows: Pairs, side: Side) -> list[int]:
    """Positions of the pairs whose groups belong to a side."""
    groups = np.unique(rows.groups)
    order = np.random.default_rng(0).permutation(len(groups))
    eval_groups = {int(groups[i]) for i in order[: len(groups) // 5]}
    return [
        i for i, group in enumerate(rows.groups) if (int(group) in eval_groups) == (side == "eval")
    ]


def _echoes(query: str, words: Words, rng: np.random.Generator) -> tuple[Document, ...]:
    content = [word.strip("?.,!") for word in query.split() if len(word) > 3] or [query]
    slots = {"question": query, "words": " ".join(content)}
    chosen = _shuffled(list(words.echoes), rng)[:NUM_NEGATIVES]
    return tuple(Document(template.format(**slots)) for template in chosen)


def _pick(options: Sequence[str], rng: np.random.Generator, *, but: str = "") -> str:
    left = [option for option in options if option != but]
    return left[rng.integers(len(left))]


def _shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [items[i] for i in rng.permutation(len(items))]


def _sentence(template: str, slots: dict[str, str]) -> str:
    text = template.format(**slots)
    return text[0].upper() + text[1:]


def write_rows(file: Path, examples: Sequence[Example]) -> None:
    """Write examples for training, in the format of `adapters/retrieval/*.parquet`."""
    write_pairs(
        file,
        texts=[example.query for example in examples],
        partners=[example.positive.text for example in examples],
        negatives=[[wrong.text for wrong in example.negatives] for example in examples],
        langs=[example.lang for example in examples],
        groups=["|".join(example.positive.fact) for example in examples],
    )


def write_task(folder: Path, examples: Sequence[Example]) -> None:
    """Write examples for evaluation, as the folder of a retrieval task for `polyvec eval`.

    The documents of all examples form one corpus. All documents that state the fact of a question
    are its answers, whichever example they come from.
    """
    facts: dict[str, set[Fact]] = {}
    for example in examples:
        for document in (example.positive, *example.negatives):
            facts.setdefault(document.text, set()).add(document.fact)
    number = {text: f"d{i:05d}" for i, text in enumerate(facts)}
    answers: dict[Fact, list[str]] = {}
    for text, stated in facts.items():
        for fact in stated - {()}:
            answers.setdefault(fact, []).append(number[text])
    by_query = {example.query: example for example in examples}
    queries = [
        {"id": f"q{i:05d}", "text": query, "lang": example.lang}
        for i, (query, example) in enumerate(by_query.items())
    ]
    qrels = [
        {"query_id": query["id"], "corpus_id": name, "score": 1}
        for query, example in zip(queries, by_query.values(), strict=True)
        for name in answers[example.positive.fact]
    ]
    corpus = [{"id": number[text], "text": text, "title": ""} for text in facts]
    folder.mkdir(parents=True, exist_ok=True)
    tables = (("corpus", corpus), ("queries", queries), ("qrels", qrels))
    for name, rows in tables:
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", compression="zstd")
    meta = {
        "name": folder.name,
        "type": "retrieval",
        "languages": sorted({example.lang for example in examples}),
        "metric": "ndcg@10",
        "source": "polyvec train failures",
        "n": len(queries),
        "corpus_size": len(corpus),
        "qrels": len(qrels),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
