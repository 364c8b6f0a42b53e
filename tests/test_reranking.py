"""Reranking: the order and the parts of its scores, in the library and on the command line."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from polyvec import Encoder, ModelConfig, Outputs, maxsim, rerank
from polyvec.checkpoint import Weights, save_checkpoint
from polyvec.reranking import HYBRID, Kind, rank_candidates, score_candidates


@pytest.fixture(scope="module")
def model(
    headed_config: ModelConfig,
    headed_weights: Weights,
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "heads"
    save_checkpoint(folder, headed_config, headed_weights)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def encoder(model: Path) -> Encoder:
    return Encoder.load(model, device="cpu", precision="float32")


def expected(encoder: Encoder, query: str, texts: list[str], tasks: tuple) -> dict:
    """Each kind of score, each by its own calls."""
    sides = [(query, tasks[0]), (texts, tasks[1])]
    dense = [encoder.encode(side, task=task) for side, task in sides]
    sparse = [encoder.encode_sparse(side, task=task) for side, task in sides]
    multi = [encoder.encode_multi_vector(side, task=task) for side, task in sides]
    return {
        "dense": (dense[0] @ dense[1].T)[0],
        "sparse": sparse[0].dot(sparse[1])[0],
        "multi_vector": maxsim(multi[0][0], multi[1]),
    }


RETRIEVAL = ("retrieval.query", "retrieval.passage")


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi_vector"])
@pytest.mark.parametrize("task", [RETRIEVAL, "separation", None])
def test_candidates_come_in_the_order_of_their_scores(
    encoder: Encoder, sentences: list[str], kind: Kind, task: tuple[str, str] | str | None
) -> None:
    texts = [*sentences, "", "fox"]
    found = rerank(encoder, "Where do foxes sleep?", texts, by=kind, task=task)
    tasks = task if isinstance(task, tuple) else (task, task)
    scores = expected(encoder, "Where do foxes sleep?", texts, tasks)[kind]
    assert sorted(one.index for one in found) == list(range(len(texts)))
    np.testing.assert_allclose([o.score for o in found], sorted(scores)[::-1], atol=1e-5)
    np.testing.assert_allclose(
        [scores[o.index] for o in found], [o.score for o in found], atol=1e-5
    )


def test_weights_add_the_kinds_up(encoder: Encoder, sentences: list[str]) -> None:
    found = rerank(encoder, "fox", sentences, by=HYBRID)
    scores = expected(encoder, "fox", sentences, RETRIEVAL)
    for one in found:
        assert one.parts == pytest.approx({k: s[one.index] for k, s in scores.items()}, abs=1e-5)
        total = one.parts["dense"] + 0.3 * one.parts["sparse"] + one.parts["multi_vector"]
        assert one.score == pytest.approx(total, abs=1e-5)


def test_stored_outputs_are_ranked_as_the_texts_are(encoder: Encoder, sentences: list[str]) -> None:
    query = encoder.encode_all("fox", task=RETRIEVAL[0])
    stored = encoder.encode_all(sentences, task=RETRIEVAL[1])
    ranked = rank_candidates(score_candidates(query, stored, HYBRID), HYBRID)
    from_texts = rerank(encoder, "fox", sentences, by=HYBRID)
    assert [one.index for one in ranked] == [one.index for one in from_texts]
    np.testing.assert_allclose(
        [one.score for one in ranked], [one.score for one in from_texts], atol=1e-5
    )


def test_only_the_outputs_of_the_kinds_are_needed(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(4, 8)).astype(np.float32)
    query, candidates = (Outputs(part, None, None) for part in (vectors[:1], vectors[1:]))
    scores = score_candidates(query, candidates, ["dense"])
    assert list(scores) == ["dense"]
    np.testing.assert_allclose(scores["dense"], vectors[1:] @ vectors[0], rtol=1e-5)


def test_ties_keep_the_order_of_the_candidates() -> None:
    ranked = rank_candidates({"dense": np.float32([1, 2, 1, 2])}, {"dense": 0.5})
    assert [(one.index, one.score) for one in ranked] == [(1, 1), (3, 1), (0, 0.5), (2, 0.5)]
    assert ranked[0].parts == {"dense": 2}


def test_the_order_of_candidates_changes_no_score(encoder: Encoder, sentences: list[str]) -> None:
    one = rerank(encoder, "fox", sentences, by=HYBRID)
    other = rerank(encoder, "fox", sentences[::-1], by=HYBRID)
    last = len(sentences) - 1
    assert [o.index for o in one] == [last - o.index for o in other]
    np.testing.assert_allclose([o.score for o in one], [o.score for o in other], atol=1e-5)


def test_equal_candidates_stay_in_order_and_none_give_none(encoder: Encoder) -> None:
    assert [one.index for one in rerank(encoder, "fox", ["dog"] * 5)] == [0, 1, 2, 3, 4]
    assert rerank(encoder, "fox", [], by=HYBRID) == []


def test_what_cannot_be_ranked_is_refused(encoder: Encoder, tiny_model: Path) -> None:
    plain = Encoder.load(tiny_model, device="cpu")
    with pytest.raises(ValueError, match="no multi-vector head"):
        rerank(plain, "fox", ["dog"], by="multi_vector")
    with pytest.raises(ValueError, match="by is empty"):
        rerank(encoder, "fox", ["dog"], by={})
    with pytest.raises(ValueError, match="put it in a list"):
        rerank(encoder, "fox", "dog")
    with pytest.raises(ValueError, match="nonsense"):
        rerank(encoder, "fox", ["dog"], task="nonsense")


def test_candidates_may_be_any_iterable_but_no_table(
    encoder: Encoder, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rerank(encoder, "fox", iter(sentences)) == rerank(encoder, "fox", sentences)
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match="candidates is a dict"):
        rerank(encoder, "fox", dict.fromkeys(sentences, ""))


@pytest.fixture
def polyvec(polyvec):
    """Run `polyvec rerank` in this process."""
    return partial(polyvec, "rerank")


@pytest.mark.parametrize("by", ["dense", "hybrid"])
def test_the_verb_prints_the_best_lines_first(polyvec, model, sentences, tmp_path, by):
    (tmp_path / "texts.txt").write_text("\n".join(sentences), encoding="utf-8")
    best = rerank(Encoder.load(model), "fox", sentences, by=HYBRID if by == "hybrid" else "dense")
    code, out, _ = polyvec("fox", tmp_path / "texts.txt", "--by", by, "--top", 2, "--model", model)
    assert code == 0
    assert out.splitlines() == [f"{one.score:.3f}  {sentences[one.index]}" for one in best[:2]]


def test_the_verb_reads_standard_input_and_keeps_fields(polyvec, model, tmp_path, monkeypatch):
    lines = ["dog", "fox", "the lazy\x1b[31m dog"]
    (tmp_path / "stdin").write_text("\n".join(lines))
    with (tmp_path / "stdin").open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, out, complained = polyvec("fox", "-", "--task", "separation", "--model", model)
    assert (code, complained) == (0, "")
    # Under one adapter the query itself is the best answer; escapes don't reach the terminal.
    assert out.splitlines()[0] == "1.000  fox"
    assert "\x1b" not in out
    records = [{"text": text, "id": f"n{i}"} for i, text in enumerate(lines)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, records)))
    code, out, _ = polyvec("fox", tmp_path / "texts.jsonl", "--json", "--model", model)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {one["id"]: one["text"] for one in found} == {r["id"]: r["text"] for r in records}
    assert all(one["score"] == one["parts"]["dense"] for one in found)
    assert [one["index"] for one in found] == [int(one["id"][1:]) for one in found]


def test_the_verb_complains_in_one_sentence(polyvec, tiny_model, tmp_path):
    (tmp_path / "texts.txt").write_text("dog")
    for words, complaint in (
        (("--by", "sparse", "--model", tiny_model), "no sparse head"),
        (("--top", 0), "--top is 0"),
    ):
        code, out, complained = polyvec("fox", tmp_path / "texts.txt", *words)
        assert (code, out) == (2, "")
        assert complaint in complained
        assert complained.count("\n") == 1
