import json
from functools import partial
from random import Random

import numpy as np
import pytest

from polyvec import Encoder
from polyvec.search.clustering import (
    cluster_items,
    cluster_texts,
    find_clusters,
    plot_points,
    read_items,
    salient_words,
)
from polyvec.terminal import ExitStatus

TOPICS = {
    "baking": [
        "Knead the bread dough and let it rise before baking.",
        "Bake the loaf of bread in a hot oven for half an hour.",
        "Flour, water, salt and yeast make a simple bread dough.",
        "The bread crust is crisp when the oven is hot.",
        "Sourdough bread needs flour and a long rise.",
        "Let the bread dough rest, then shape the loaf.",
    ],
    "football": [
        "The striker scored two goals in the football match.",
        "Our football team won the match after extra time.",
        "The goalkeeper saved a penalty in the football final.",
        "The referee showed the football player a red card.",
        "The coach changed the team before the football match.",
        "Football fans cheered when their team scored a goal.",
    ],
    "space": [
        "The telescope observed a distant galaxy and its stars.",
        "Astronomers found a planet that orbits a nearby star.",
        "The rocket carried a telescope into orbit around the planet.",
        "A black hole bends the light of stars in the galaxy.",
        "The moon orbits our planet, and the planet orbits the sun.",
        "Light from the galaxy reached the telescope of the astronomers.",
    ],
}


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return Encoder.load(tiny_model)


@pytest.fixture(scope="module")
def bundled():
    return Encoder.load()


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, texts in TOPICS.items():
        (folder / f"{name}.csv").write_text(
            "text\n" + "".join(f'"{text}"\n' for text in texts), encoding="utf-8"
        )
    return folder


@pytest.fixture
def polyvec(run_verb):
    """Run `polyvec cluster` with the tiny model: exit status, output, complaints."""
    return partial(run_verb, "cluster")


def blobs(rng, *sizes, spread=0.05, dim=32):
    """Unit vectors around as many centres, one after another."""
    centres = np.eye(dim, dtype=np.float32)[: len(sizes)]
    vectors = np.repeat(centres, sizes, axis=0)
    vectors += rng.normal(size=vectors.shape).astype(np.float32) * spread
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def members(numbers, texts):
    """The clusters as sets of texts, whatever their numbers."""
    return {
        number: {text for text, own in zip(texts, numbers, strict=True) if own == number}
        for number in set(numbers)
    }


def test_three_clear_groups_are_found_the_largest_first(rng):
    numbers = find_clusters(blobs(rng, 10, 30, 20))
    assert numbers.tolist() == [2] * 10 + [0] * 30 + [1] * 20


def test_what_belongs_nowhere_is_in_none(rng):
    scattered = rng.normal(size=(20, 32)).astype(np.float32)
    numbers = find_clusters(np.concatenate([blobs(rng, 20, 20, 20), scattered]))
    assert set(numbers[:60].tolist()) == {0, 1, 2}
    assert (numbers[60:] == -1).mean() > 0.5


@pytest.mark.parametrize("size", [2, 5, 16])
def test_no_cluster_is_smaller_than_asked(rng, size):
    numbers = find_clusters(rng.normal(size=(60, 8)).astype(np.float32), min_size=size)
    assert all((numbers == number).sum() >= size for number in set(numbers.tolist()) - {-1})


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_a_few_texts_or_equal_ones_do_no_harm(tiny, count):
    found = cluster_texts(["fox"] * count, tiny)
    assert len(found.cluster_ids) == count
    assert len(set(found.cluster_ids.tolist())) <= 1
    points = plot_points(found.vectors)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()


def test_three_topics_are_told_apart_and_named(bundled):
    texts = [text for topic in TOPICS.values() for text in topic]
    found = cluster_texts(texts, bundled)
    clusters = [{found.cluster_ids[6 * topic + place] for place in range(6)} for topic in range(3)]
    inside = [numbers - {-1} for numbers in clusters]
    assert all(inside)
    assert not any(inside[a] & inside[b] for a, b in [(0, 1), (0, 2), (1, 2)])
    assert (found.cluster_ids >= 0).mean() > 0.7
    for topic, word in enumerate(["bread", "football", "planet telescope galaxy"]):
        words = {word for number in inside[topic] for word in found.words[number]}
        assert words & set(word.split())


def test_every_text_is_in_one_cluster_or_none(bundled, notes):
    items = read_items(notes, bundled.tokenizer)
    found = cluster_items(items, bundled)
    assert len(items) == len(found.cluster_ids) == 18
    kinds = range(-1, len(found.words))
    assert sorted(place for kind in kinds for place in found.members(kind)) == [*range(18)]
    assert ((found.scores == 0) == (found.cluster_ids < 0)).all()
    for kind in range(len(found.words)):
        scores = found.scores[found.members(kind)]
        assert (scores[:-1] >= scores[1:]).all()


def test_the_order_of_texts_changes_nothing_but_their_order(bundled):
    texts = [text for topic in TOPICS.values() for text in topic]
    shuffled = Random(1).sample(texts, len(texts))
    one, other = cluster_texts(texts, bundled), cluster_texts(shuffled, bundled)
    assert one.words == other.words
    assert members(one.cluster_ids.tolist(), texts) == members(other.cluster_ids.tolist(), shuffled)
    drawn = dict(zip(texts, plot_points(one.vectors), strict=True))
    for text, point in zip(shuffled, plot_points(other.vectors), strict=True):
        np.testing.assert_array_equal(point, drawn[text])


def test_a_file_as_a_whole_is_one_item_and_lies_between_its_passages(tiny, tmp_path):
    (tmp_path / "a.csv").write_text("text\nthe fox\nthe dog\n")
    (tmp_path / "b.txt").write_text("snow")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    said = []
    items = read_items(tmp_path, tiny.tokenizer, each="file", on_skipped=said.append)
    assert [item.path for item in items] == ["a.csv", "b.txt"]
    assert len(said) == 1
    assert "bad.txt" in said[0]
    both = tiny.encode(["the fox", "the dog"], task="separation").sum(0)
    vectors = cluster_items(items, tiny).vectors
    np.testing.assert_allclose(vectors[0], both / np.linalg.norm(both), atol=1e-5)


def test_a_word_that_all_clusters_share_is_salient_in_none(bundled):
    texts = ["garden house"] * 3 + ["garden river"] * 3 + ["garden mountain"]
    numbers = np.array([0] * 3 + [1] * 3 + [-1])
    words = salient_words(texts, numbers, bundled.tokenizer, count=1)
    assert words == [["house"], ["river"]]


def test_a_word_that_every_text_of_its_language_has_is_less_salient_than_its_topic(bundled):
    texts = [*["der Garten"] * 3, "der Hund", *["the house"] * 3, "the river"]
    numbers = np.array([0] * 4 + [1] * 4)
    words = salient_words(texts, numbers, bundled.tokenizer, count=1)
    assert words == [["garten"], ["house"]]


def test_json_has_a_line_for_each_text(polyvec, notes):
    code, out, err = polyvec(notes, "--json", "--min-size", 3)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line["path"], line["line"]) for line in lines] == [
        (f"{name}.csv", line) for name in TOPICS for line in range(2, 8)
    ]
    assert all((line["cluster"] is None) == (line["words"] == []) for line in lines)
    assert "18 passages" in err


@pytest.mark.parametrize("name", ["map.html", "map.png"])
def test_two_runs_write_the_same(polyvec, notes, tmp_path, name):
    one = polyvec(notes, "--map", tmp_path / name)[1], (tmp_path / name).read_bytes()
    other = polyvec(notes, "--map", tmp_path / name)[1], (tmp_path / name).read_bytes()
    assert one == other
    assert sorted(path.name for path in notes.iterdir()) == sorted(f"{name}.csv" for name in TOPICS)


def test_an_empty_folder_has_no_clusters(polyvec, tmp_path):
    code, out, err = polyvec(tmp_path, "--map", tmp_path / "map.html")
    assert (code, out) == (ExitStatus.INCOMPLETE, "")
    assert "there is no text to cluster" in err


def test_a_text_steers_no_terminal(polyvec, tmp_path):
    (tmp_path / "fox.txt").write_text("fox \x1b[2J")
    code, out, _ = polyvec(tmp_path)
    assert code == 0
    assert "fox" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["/no/where"], "there is no folder /no/where"),
        ([".", "--min-size", "1"], "at least 2"),
        ([".", "--top", "-1"], "at least 0"),
        ([".", "--map", "map.pdf"], "map.pdf must end in .html or .png"),
        ([".", "--map", "no/map.png"], "there is no folder no"),
        ([".", "--layout", "umap"], "umap"),
        ([".", "--topics", "0"], "at least 1"),
        ([".", "--topics", "2", "--min-size", "3"], "not both"),
    ],
)
def test_bad_input_is_named_in_one_sentence(polyvec, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    code, out, err = polyvec(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert part in err


@pytest.mark.parametrize("topics", [1, 2, 5])
def test_as_many_topics_as_asked_for_hold_every_text(rng, topics):
    points = blobs(rng, 10, 30, 20)
    numbers = find_clusters(points, topics=topics)
    assert sorted(set(numbers.tolist())) == list(range(topics))
    sizes = [(numbers == number).sum() for number in range(topics)]
    assert sizes == sorted(sizes, reverse=True)
    assert find_clusters(points, topics=topics).tolist() == numbers.tolist()


def test_no_more_topics_than_different_texts(tiny):
    assert set(cluster_texts(["fox", "fox", "dog"], tiny, topics=9).cluster_ids.tolist()) == {0, 1}
    assert len(cluster_texts([], tiny, topics=3).cluster_ids) == 0


def test_a_text_as_near_as_those_of_a_cluster_joins_it(rng):
    centre = rng.normal(size=32)
    # A dense middle, and a ring around it that is not dense.
    near = centre + 0.05 * rng.normal(size=(60, 32))
    other = -centre + 0.05 * rng.normal(size=(40, 32))
    numbers = find_clusters(np.concatenate([near, other]).astype(np.float32))
    assert (numbers < 0).mean() < 0.15


def test_names_of_columns_and_repeated_lines_are_no_keywords(bundled, tmp_path):
    rows = "\n".join(f"{dish},Kitchen department" for dish in ("bread", "soup", "cake", "rice"))
    (tmp_path / "menu.csv").write_text(f"dishname,office\n{rows}\n")
    pages = "\n\n".join(
        f"# Part {n}\n\nThe {word} orbits far away.\n\nAnnual report, page {n}"
        for n, word in enumerate(["planet", "moon", "comet", "asteroid"])
    )
    (tmp_path / "sky.md").write_text(pages)
    topics = [item.topic for item in read_items(tmp_path, bundled.tokenizer)]
    assert len(topics) == 8
    said = "\n".join(topics)
    assert "dishname" not in said and "Annual report" not in said
    # A value that many rows share may be their topic.
    assert said.count("Kitchen") == 4
    assert all(word in said for word in ("bread", "planet", "asteroid"))


def test_a_file_is_clustered_alone(polyvec, notes):
    name = next(iter(TOPICS))
    code, out, err = polyvec(notes / f"{name}.csv", "--topics", 2, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {line["path"] for line in lines} == {f"{name}.csv"}
    assert {line["cluster"] for line in lines} == {1, 2}
    assert "2 clusters, 0 in none" in err
