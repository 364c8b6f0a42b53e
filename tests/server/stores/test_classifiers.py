"""Classifiers on disk lose no example, and do not depend on the order of examples."""

import sqlite3
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from random import Random

import numpy as np
import pytest

from polyvec.server.errors import ApiError
from polyvec.server.stores import classifiers as classifiers_module
from polyvec.server.stores.classifiers import Classifiers


def test_a_classifier_does_not_depend_on_the_order_of_its_examples(tmp_path, rng):
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    labels = [f"label {i}" for i in rng.integers(0, 3, 40)]
    order = rng.permutation(40)
    once = store.create("me", "m", "f", "private", labels, vectors)
    shuffled = [labels[i] for i in order]
    again = store.create("me", "m", "f", "private", shuffled[:10], vectors[order[:10]])
    store.update("me", again, shuffled[10:], vectors[order[10:]])
    first, second = (store.find("me", key, to_change=False).classifier for key in (once, again))
    assert first.labels == second.labels
    assert np.array_equal(first.weights, second.weights)
    assert np.array_equal(first.biases, second.biases)


def test_no_concurrent_update_is_lost(tmp_path, rng):
    path = tmp_path / "classifiers.sqlite"
    vectors = rng.normal(size=(2, 4)).astype(np.float32)
    key = Classifiers(path).create("me", "m", "f", "private", ["a", "b"], vectors)
    start = threading.Barrier(8)

    def update(number):
        start.wait()
        Classifiers(path).update("me", key, [f"label {number}"] * 2, vectors)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(update, range(8)))
    [summary] = Classifiers(path).list("me")
    assert summary["updated_number"] == 8 and len(summary["labels"]) == 10
    assert Classifiers(path).find("me", key, to_change=False).classifier.labels == summary["labels"]
    with pytest.raises(ApiError, match="not found"):
        Classifiers(path).find("another", key, to_change=False)


def test_a_classifier_has_a_limit_of_examples_and_of_labels(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(classifiers_module, "MAX_EXAMPLES", 6)
    monkeypatch.setattr(classifiers_module, "MAX_LABELS", 3)
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(7, 4)).astype(np.float32)
    key = store.create("me", "m", "f", "private", list("abca"), vectors[:4])
    with pytest.raises(ApiError, match="7 examples; the limit is 6") as caught:
        store.update("me", key, list("abc"), vectors[:3])
    assert caught.value.status == 400
    with pytest.raises(ApiError, match="4 labels") as caught:
        store.update("me", key, ["d"], vectors[:1])
    assert caught.value.status == 400
    assert store.list("me")[0]["labels"] == list("abc")
    store.update("me", key, ["a", "b"], vectors[:2])


def test_a_fit_that_is_ended_changes_nothing(tmp_path, rng):
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    labels = list("abcd" * 10)
    key = store.create("me", "m", "f", "private", labels, vectors)
    before = store.find("me", key, to_change=False)
    calls = []

    def check():
        calls.append(1)
        if len(calls) > 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        store.update("me", key, ["e"] * 40, vectors, check=check)
    assert len(calls) == 3
    with pytest.raises(CancelledError):
        store.create("me", "m", "f", "private", labels, vectors, check=check)
    [summary] = store.list("me")
    after = store.find("me", key, to_change=False)
    assert (summary["updated_number"], summary["labels"]) == (0, list("abcd"))
    assert np.array_equal(after.classifier.weights, before.classifier.weights)


def test_a_private_classifier_is_hidden_from_others_and_a_public_one_is_read_only(tmp_path, rng):
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(2, 4)).astype(np.float32)
    key = store.create("me", "m", "f", "private", ["a", "b"], vectors)
    with pytest.raises(ApiError) as caught:
        store.find("other", key, to_change=False)
    assert caught.value.status == 404
    store.update("me", key, ["c", "d"], vectors, access="public")
    assert store.find("other", key, to_change=False).classifier.labels == list("abcd")
    for change in (
        lambda: store.find("other", key, to_change=True),
        lambda: store.update("other", key, ["c", "d"], vectors),
        lambda: store.delete("other", key),
    ):
        with pytest.raises(ApiError) as caught:
            change()
        assert caught.value.status == 404
    assert store.list("other") == []


def test_a_flipped_bit_on_disk_is_an_error_or_changes_no_number(tmp_path, rng, monkeypatch):
    path = tmp_path / "classifiers.sqlite"
    vectors = rng.normal(size=(20, 16)).astype(np.float32)
    store = Classifiers(path)
    key = store.create("me", "m", "f", "private", list("abcd") * 5, vectors)
    with closing(sqlite3.connect(path)) as database:
        database.execute("pragma journal_mode=delete")
    weights = store.find("me", key, to_change=False).classifier.weights
    whole, random, errors = path.read_bytes(), Random(4), 0
    monkeypatch.setattr(classifiers_module, "fit", lambda labels, vectors, check: vectors)
    monkeypatch.setattr(classifiers_module, "_pack", lambda vectors: _fail(vectors))

    def _fail(vectors):
        raise LearnedError(vectors)

    for _ in range(150):
        damaged = bytearray(whole)
        damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        try:
            store = Classifiers(path)
            found = store.find("me", key, to_change=False).classifier
            assert np.array_equal(found.weights, weights) and found.labels == list("abcd")
            with pytest.raises(LearnedError) as caught:
                store.update("me", key, ["a"], vectors[:1])
            assert np.array_equal(caught.value.args[0][:-1], vectors)
        except (ApiError, ValueError):
            errors += 1
    assert errors > 10


class LearnedError(Exception):
    """Carries what would have been learned."""


def test_a_file_of_the_older_format_is_refused_by_its_name(tmp_path):
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table classifiers (classifier_id text, weights blob)")
    with pytest.raises(ValueError, match=r"old\.sqlite was written by an older version"):
        Classifiers(path)
