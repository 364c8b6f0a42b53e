"""Classifiers on disk lose no example, and do not depend on the order of examples."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

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
    once = store.create("me", "m", "private", labels, vectors)
    shuffled = [labels[i] for i in order]
    again = store.create("me", "m", "private", shuffled[:10], vectors[order[:10]])
    store.update("me", again, shuffled[10:], vectors[order[10:]])
    first, second = (store.use("me", key).classifier for key in (once, again))
    assert first.labels == second.labels
    assert np.array_equal(first.weights, second.weights)
    assert np.array_equal(first.biases, second.biases)


def test_no_concurrent_update_is_lost(tmp_path, rng):
    path = tmp_path / "classifiers.sqlite"
    vectors = rng.normal(size=(2, 4)).astype(np.float32)
    key = Classifiers(path).create("me", "m", "private", ["a", "b"], vectors)
    start = threading.Barrier(8)

    def update(number):
        start.wait()
        Classifiers(path).update("me", key, [f"label {number}"] * 2, vectors)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(update, range(8)))
    [summary] = Classifiers(path).list("me")
    assert summary["updated_number"] == 8 and len(summary["labels"]) == 10
    assert Classifiers(path).use("me", key).classifier.labels == summary["labels"]
    with pytest.raises(ApiError, match="not found"):
        Classifiers(path).use("another", key)


def test_a_classifier_has_a_limit_of_examples_and_of_labels(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(classifiers_module, "MAX_EXAMPLES", 6)
    monkeypatch.setattr(classifiers_module, "MAX_LABELS", 3)
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(7, 4)).astype(np.float32)
    key = store.create("me", "m", "private", list("abca"), vectors[:4])
    with pytest.raises(ApiError, match="7 examples; the limit is 6") as caught:
        store.update("me", key, list("abc"), vectors[:3])
    assert caught.value.status == 400
    with pytest.raises(ApiError, match="4 labels") as caught:
        store.update("me", key, ["d"], vectors[:1])
    assert caught.value.status == 400
    assert store.list("me")[0]["labels"] == list("abc")
    store.update("me", key, ["a", "b"], vectors[:2])


def test_a_classifier_whose_fit_was_interrupted_is_fitted_when_it_is_used(
    tmp_path, monkeypatch, rng
):
    store = Classifiers(tmp_path / "classifiers.sqlite")
    vectors = rng.normal(size=(4, 4)).astype(np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_fit", lambda key: None)
        key = store.create("me", "m", "private", list("abab"), vectors)
    first, second = store.use("me", key).classifier, store.use("me", key).classifier
    assert np.array_equal(first.weights, second.weights) and first.labels == ["a", "b"]


def test_a_file_of_the_older_format_is_refused_by_its_name(tmp_path):
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table classifiers (classifier_id text, weights blob)")
    with pytest.raises(ValueError, match=r"old\.sqlite was written by an older version"):
        Classifiers(path)
