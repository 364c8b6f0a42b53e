"""Classification: by names and by examples, in the library and on the command line."""

import json
import sys
from functools import partial

import numpy as np
import pytest

from polyvec import Encoder
from polyvec.classification import (
    TEMPERATURE,
    classify,
    from_examples,
    from_names,
    learn_examples,
    learn_names,
)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return Encoder.load(tiny_model)


@pytest.fixture(scope="module")
def bundled():
    return Encoder.load()


@pytest.fixture
def polyvec(run_verb):
    """Run `polyvec classify` with the tiny model: exit status, output, complaints."""
    return partial(run_verb, "classify")


def unit(rng, count, dim=16):
    """Random vectors of length 1."""
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_zero_shot_odds_are_the_difference_of_cosines_over_the_temperature(rng):
    names, texts = unit(rng, 3), unit(rng, 50)
    classifier = from_names(["a", "b", "c"], names)
    probabilities = classifier.probabilities(texts)
    cosines = texts @ names.T
    odds = np.log(probabilities[:, 0] / probabilities[:, 1])
    np.testing.assert_allclose(odds, (cosines[:, 0] - cosines[:, 1]) / TEMPERATURE, atol=1e-3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert (probabilities.argmax(1) == cosines.argmax(1)).all()


@pytest.mark.parametrize("labels", [["b", "a"] * 10, ["b", "c", "a", "b"] * 5])
def test_few_shot_probabilities_do_not_depend_on_the_order_of_examples(rng, labels):
    vectors, texts = unit(rng, 20), unit(rng, 30)
    order = rng.permutation(20)
    one = from_examples(labels, vectors)
    other = from_examples([labels[i] for i in order], vectors[order])
    assert one.labels == other.labels == sorted(set(labels))
    np.testing.assert_allclose(one.probabilities(texts), other.probabilities(texts), atol=1e-3)
    np.testing.assert_allclose(one.probabilities(texts).sum(1), 1, atol=1e-5)
    assert [one.labels[i] for i in one.probabilities(vectors).argmax(1)] == labels


def test_examples_in_a_narrow_cone_are_told_apart_as_well_as_others(rng):
    labels = ["a", "b"] * 10
    vectors, texts = unit(rng, 20), unit(rng, 30)
    wide = from_examples(labels, vectors).probabilities(texts)
    narrow = from_examples(labels, vectors * 0.01 + 1).probabilities(texts * 0.01 + 1)
    np.testing.assert_allclose(narrow, wide, atol=0.02)


def test_large_logits_do_not_overflow(rng):
    vectors = 1_000 * unit(rng, 3)
    probabilities = from_names(["a", "b", "c"], vectors).probabilities(vectors)
    assert probabilities.argmax(1).tolist() == [0, 1, 2]
    assert np.isfinite(probabilities).all()


def test_the_command_line_gives_the_probabilities_of_the_library(polyvec, tiny, tmp_path):
    texts = ["a fox", "der Hund", "snow"]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    (tmp_path / "known.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "label": label}) + "\n"
            for text, label in [("fox", "animal"), ("ice", "weather"), ("dog", "animal")]
        )
    )
    ways = {
        ("-l", "fox", "-l", "dog"): learn_names(tiny, ["fox", "dog"]),
        ("--examples", tmp_path / "known.jsonl"): learn_examples(
            tiny, ["fox", "ice", "dog"], ["animal", "weather", "animal"]
        ),
    }
    for words, classifier in ways.items():
        code, out, _ = polyvec("-i", tmp_path / "in.txt", *words, "--json")
        assert code == 0
        scores = [json.loads(line)["scores"] for line in out.splitlines()]
        assert [[*one] for one in scores] == [classifier.labels] * 3
        got = np.array([[*one.values()] for one in scores])
        np.testing.assert_allclose(got, classify(tiny, classifier, texts), atol=1e-5)


def test_shares_of_a_text_sum_to_one_in_the_order_of_the_names(tiny):
    classifier = learn_names(tiny, ["fox", "dog", "snow"])
    shares = classify(tiny, classifier, ["a fox", "der Hund"])
    assert classifier.labels == ["fox", "dog", "snow"]
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)


def test_the_order_of_names_changes_no_share(tiny):
    texts = ["a fox", "der Hund"]
    one = classify(tiny, learn_names(tiny, ["fox", "dog", "snow"]), texts)
    other = classify(tiny, learn_names(tiny, ["snow", "fox", "dog"]), texts)
    np.testing.assert_allclose(one, other[:, [1, 2, 0]], atol=1e-5)


def test_a_text_that_is_a_label_has_that_label(tiny):
    names = ["fox", "lazy dog", "snow"]
    shares = classify(tiny, learn_names(tiny, names), names)
    assert shares.argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels", [["a", "b"] * 3, ["a", "b", "c"] * 2])
def test_examples_get_their_own_labels_back(bundled, sentences, labels):
    classifier = learn_examples(bundled, sentences, labels)
    shares = classify(bundled, classifier, sentences)
    assert [classifier.labels[best] for best in shares.argmax(1)] == labels
    assert (shares.max(1) > 0.6).all()
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)


def test_the_order_of_examples_does_not_matter(tiny, sentences):
    labels = ["a", "b", "b", "a", "c", "c"]
    one = learn_examples(tiny, sentences, labels)
    other = learn_examples(tiny, sentences[::-1], labels[::-1])
    assert one.labels == other.labels
    np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ([], "at least two"),
        (["fox"], "only 'fox'"),
        (["fox", " "], "is empty"),
        (["fox", "dog", "fox "], "'fox' is given twice"),
    ],
)
def test_names_that_leave_no_choice_are_refused(tiny, names, part):
    with pytest.raises(ValueError, match=part):
        learn_names(tiny, names)


def test_examples_that_leave_no_choice_are_refused(tiny):
    with pytest.raises(ValueError, match="only 'a'"):
        learn_examples(tiny, ["x", "y"], ["a", "a"])
    with pytest.raises(ValueError, match="example 2 has an empty text"):
        learn_examples(tiny, ["x", " "], ["a", "b"])
    with pytest.raises(ValueError, match="example 1 has an empty label"):
        learn_examples(tiny, ["x", "y"], ["", "b"])


def test_the_bundled_model_knows_obvious_labels_by_name(bundled):
    texts = [
        "The striker scored two goals and the team won the football match.",
        "The parliament voted on the new election law proposed by the government.",
        "Bake the bread in a hot oven and cook the soup with onions.",
    ]
    classifier = learn_names(bundled, ["sports", "politics", "cooking"])
    assert classify(bundled, classifier, texts).argmax(1).tolist() == [0, 1, 2]


def test_json_keeps_fields_and_lines_and_gives_every_score(polyvec, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": 7, "text": "fox"}\n" "\n"dog"\n')
    code, out, _ = polyvec("-i", tmp_path / "in.jsonl", "-l", "fox", "-l", "dog", "--json")
    fox, blank, dog = map(json.loads, out.splitlines())
    assert code == 0
    assert (fox["id"], fox["label"], dog["label"]) == (7, "fox", "dog")
    assert fox["scores"]["fox"] == fox["score"] > fox["scores"]["dog"]
    assert (blank["label"], blank["score"], blank["scores"]) == (None, None, {})


def test_a_csv_of_examples_labels_a_csv_of_texts(polyvec, tmp_path):
    (tmp_path / "known.csv").write_text(
        'label,text\nanimal,"fox, dog"\nweather,snow\nanimal,a lazy dog\n', encoding="utf-8-sig"
    )
    (tmp_path / "in.csv").write_text("id,text\n1,snow\n2,a lazy dog\n")
    code, out, _ = polyvec("-i", tmp_path / "in.csv", "--examples", tmp_path / "known.csv")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["weather", "animal"]


def test_texts_come_from_standard_input(polyvec, monkeypatch, tmp_path):
    (tmp_path / "in").write_text("fox\ndog\n")
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, out, _ = polyvec("-l", "dog", "-l", "fox")
    assert (code, [line.split()[1] for line in out.splitlines()]) == (0, ["fox", "dog"])


def test_a_text_steers_no_terminal(polyvec):
    code, out, _ = polyvec("fox\x1b[2J", "-l", "dog\x1b[1m", "-l", "fox")
    assert code == 0
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("content", "words", "part"),
    [
        ("", ["x", "-l", "a"], "only 'a'"),
        ("", ["x"], "--labels NAME"),
        ("", ["x", "-l", "a", "-l", "b", "--examples", "in.csv"], "not both"),
        ("", ["x", "-i", "in.csv", "-l", "a"], "not both"),
        ("", ["x", "--examples", "in.csv"], "in.csv lacks the columns text, label"),
        ("text,label\n", ["x", "--examples", "in.csv"], "in.csv has no examples"),
        ("text,label\nx,a\n", ["x", "--examples", "in.csv"], "in.csv: there must be"),
        (
            "text,kind\nx,a\n",
            ["x", "--examples", "in.csv"],
            "lacks the column label; it has text, kind",
        ),
        ("text,label\nx,a,b\n", ["x", "--examples", "in.csv"], "line 2: has 3 cells"),
        ("body\nx\n", ["-i", "in.csv", "-l", "a", "-l", "b"], "column text"),
        ("", ["-i", "no.csv", "-l", "a", "-l", "b"], "no.csv"),
        ("", ["x", "-l", "a", "-l", "b", "--task", "cooking"], "classification"),
    ],
)
def test_bad_input_is_named_in_one_sentence(polyvec, tmp_path, monkeypatch, content, words, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_bytes(content.encode("latin-1"))
    code, out, err = polyvec(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert part in err
