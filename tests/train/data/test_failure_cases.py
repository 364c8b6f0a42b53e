"""The four failure cases: labels right by construction, two sides with nothing in common."""

import dataclasses
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyvec.eval.task_folders import local_tasks
from polyvec.train.data.failure_cases import (
    CASES,
    NUM_NEGATIVES,
    Example,
    make_examples,
    write_rows,
    write_task,
)
from polyvec.train.data.failure_words import EVAL, TRAIN
from polyvec.train.data.pairs import Pairs, read_pairs

SIDES = ("train", "eval")


@pytest.fixture(scope="module")
def given() -> Pairs:
    """Two questions on each invented passage: one about a name, and one with the answer yes."""
    names = ["Anna Keller", "Otto Brandt", "Lena Vogel", "Max Sommer", "Ida Busch"]
    passages = [f"In {1900 + i} {names[i % 5]} opened mill {i} by the river." for i in range(50)]
    return Pairs(
        texts=[
            text
            for i in range(50)
            for text in (f"When did {names[i % 5]} open mill {i}?", f"Is mill {i} by a river?")
        ],
        partners=[passage for passage in passages for _ in range(2)],
        groups=np.arange(100) // 2,
        langs=["en"] * 100,
        negatives=[[passages[(i // 2 + k) % 50] for k in (1, 2)] for i in range(100)],
    )


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def texts(examples: list[Example]) -> set[str]:
    return {
        text
        for example in examples
        for text in (example.query, example.positive.text, *(d.text for d in example.negatives))
    }


@pytest.mark.parametrize("with_pairs", [False, True])
def test_no_negative_states_the_fact_of_the_question(
    case: str, with_pairs: bool, given: Pairs
) -> None:
    for side in SIDES:
        examples = make_examples(case, side, num=10_000, given=given if with_pairs else None)
        assert len(examples) >= 80
        for example in examples:
            assert example.positive.fact
            assert 0 < len(example.negatives) <= NUM_NEGATIVES
            for negative in example.negatives:
                assert negative.fact != example.positive.fact
                assert negative.text != example.positive.text


def test_a_text_states_one_thing(case: str) -> None:
    stated: dict[str, set] = {}
    for example in make_examples(case, "train", num=10_000):
        for document in (example.positive, *example.negatives):
            stated.setdefault(document.text, set()).add(document.fact)
    assert all(len(facts) == 1 for facts in stated.values())


def test_the_two_sides_share_no_text(case: str, given: Pairs) -> None:
    one, two = (texts(make_examples(case, side, num=10_000, given=given)) for side in SIDES)
    shared = one & two
    # A given negative may stand on both sides; a question or an answer may not.
    assert shared <= {text for negatives in given.negatives for text in negatives}
    assert not shared or case == "polar"
    without_pairs = [texts(make_examples(case, side, num=10_000)) for side in SIDES]
    assert not without_pairs[0] & without_pairs[1]


def test_the_two_sides_share_no_name_and_no_template() -> None:
    for field in dataclasses.fields(TRAIN):
        one, two = (
            {item[0] if field.name == "reversals" else item for item in getattr(side, field.name)}
            for side in (TRAIN, EVAL)
        )
        assert one
        assert not one & two, field.name


def test_given_groups_belong_to_one_side(given: Pairs) -> None:
    facts = [
        {
            example.positive.fact
            for case in CASES
            for example in make_examples(case, side, num=10_000, given=given)
            if example.positive.fact[0] == "given"
        }
        for side in SIDES
    ]
    assert len(facts[0]) == 40
    assert len(facts[1]) == 10
    assert not facts[0] & facts[1]


def test_examples_are_a_function_of_the_seed(case: str, given: Pairs) -> None:
    one, same, other = (
        make_examples(case, "train", num=60, seed=seed, given=given) for seed in (0, 0, 1)
    )
    assert one == same != other
    assert len(one) == 60


def test_syntax_negatives_use_the_questions_words_and_the_answer_does_not() -> None:
    for example in make_examples("syntax", "train", num=100):
        verb = example.positive.fact[1]
        assert verb in example.query
        assert verb not in example.positive.text
        assert sum(verb in negative.text for negative in example.negatives) >= 6


def test_relations_have_one_agent_in_the_world() -> None:
    """All examples agree on who acted on b."""
    agents: dict[tuple, str] = {}
    for example in make_examples("syntax", "train", num=10_000):
        _, verb, patient, setting = example.positive.fact
        text = example.positive.text[0].lower() + example.positive.text[1:]
        others = text.replace(patient, "")
        agent = others[others.index(" the ", others.index(dict(TRAIN.relations)[verb])) :]
        assert agents.setdefault((verb, patient, setting), agent) == agent
    assert len(agents) == len(make_examples("syntax", "train", num=10_000))


def test_entity_negatives_contain_part_of_the_name() -> None:
    for example in make_examples("entities", "eval", num=100):
        first, last = example.positive.fact[1].split()
        assert first in example.query
        for negative in example.negatives:
            assert first in negative.text or last.lower() in negative.text.lower()
            if negative.fact:
                assert f"{first} {last}" not in negative.text


def test_polar_answers_are_true() -> None:
    for example in make_examples("polar", "eval", num=1_000):
        _, thing, act = example.positive.fact
        denies = "not" in example.positive.text or "never" in example.positive.text
        assert denies != EVAL.abilities[thing][act]


def test_poor_documents_repeat_the_question() -> None:
    for example in make_examples("quality", "train", num=200):
        words = [word.strip("?") for word in example.query.split() if len(word) > 3]
        for negative in example.negatives:
            assert sum(word in negative.text for word in words) >= 0.8 * len(words)
            assert negative.fact == ()


def test_rows_are_read_back_as_pairs_with_negatives(tmp_path: Path, given: Pairs) -> None:
    examples = make_examples("quality", "train", num=50, given=given)
    write_rows(tmp_path / "made/quality.parquet", examples)
    rows = read_pairs(tmp_path / "made/quality.parquet", lang="lang")
    assert rows.texts == [example.query for example in examples]
    assert rows.partners == [example.positive.text for example in examples]
    assert rows.negatives[3] == [document.text for document in examples[3].negatives]
    facts = [example.positive.fact for example in examples]
    for i in range(50):
        assert [g == rows.groups[i] for g in rows.groups] == [fact == facts[i] for fact in facts]


def test_eval_reads_a_task_folder_whose_answers_are_the_facts(
    case: str, tmp_path: Path, given: Pairs
) -> None:
    examples = make_examples(case, "eval", num=90, given=given)
    write_task(tmp_path / f"failures-{case}", examples)
    corpus, queries, qrels = (
        pq.read_table(tmp_path / f"failures-{case}/{name}.parquet").to_pylist()
        for name in ("corpus", "queries", "qrels")
    )
    stated: dict[str, set] = {}
    for document in chain(*((e.positive, *e.negatives) for e in examples)):
        stated.setdefault(document.text, set()).add(document.fact)
    asked = {example.query: example.positive.fact for example in examples}
    expected = {
        (query["id"], document["id"])
        for query in queries
        for document in corpus
        if asked[query["text"]] in stated[document["text"]]
    }
    assert {(row["query_id"], row["corpus_id"]) for row in qrels} == expected
    assert {row["query_id"] for row in qrels} == {query["id"] for query in queries}
    meta = json.loads((tmp_path / f"failures-{case}/meta.json").read_text())
    assert (meta["n"], meta["corpus_size"]) == (len(queries), len(corpus))
    (task,) = local_tasks(tmp_path)
    task.load_data()
    assert len(task.dataset["en"]["test"]["queries"]) > 0
