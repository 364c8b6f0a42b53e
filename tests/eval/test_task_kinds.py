"""Scores of each kind of task equal an independent computation on the rows that are kept."""

import json
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mteb.abstasks.task_metadata import TaskType
from scipy.stats import spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, v_measure_score

from polyvec.eval import evaluate, local_tasks
from polyvec.eval.intervals import MAX_STORED_DRAWS, match_scores
from polyvec.eval.markdown_report import task_table
from polyvec.eval.task_kinds import (
    COLUMNS,
    KINDS,
    METRICS,
    Metric,
    TaskKind,
    mean_over_queries,
    report_column,
)
from polyvec.eval.task_readers import TRAIN_TEXTS
from tests.eval.synthetic import (
    WORDS,
    cosines,
    embed,
    random_texts,
    retrieval_folder,
    score_task,
    sts_folder,
    summary,
    task_folder,
    tiny_mteb_encoder,
)


def limited(kind: str, max_rows: int) -> TaskKind:
    """A kind with other limits."""
    folder = KINDS[kind].folder
    assert folder is not None
    return replace(KINDS[kind], folder=replace(folder, max_rows=max_rows))


def test_sts_is_scipys_spearman_in_each_language(tmp_path: Path) -> None:
    task = score_task(sts_folder(tmp_path))
    rows = pq.read_table(tmp_path / "eval/sts/pairs.parquet").to_pylist()
    for lang, score in task.subsets.items():
        part = [row for row in rows if row["lang"] == lang]
        similar = np.diag(cosines([r["text1"] for r in part], [r["text2"] for r in part]))
        expected = spearmanr(similar, [row["score"] for row in part]).statistic
        assert score.value == pytest.approx(expected, abs=1e-6)
    assert task.score.value == pytest.approx(np.mean([s.value for s in task.subsets.values()]))


def test_pair_classification_is_scikit_learns_average_precision(tmp_path: Path) -> None:
    a, b = random_texts(30, 1), random_texts(30, 2)
    labels = ["entailment", "neutral", "contradiction"] * 10
    rows = [
        {"text1": x, "text2": y, "label": label, "lang": "en"}
        for x, y, label in zip(a, b, labels, strict=True)
    ]
    task = score_task(task_folder(tmp_path, "pair_classification", pairs=rows))
    expected = average_precision_score(np.array(labels) == "entailment", np.diag(cosines(a, b)))
    assert task.score.value == pytest.approx(expected, abs=1e-6)


def test_retrieval_is_a_hand_written_ndcg(tmp_path: Path) -> None:
    task = score_task(retrieval_folder(tmp_path))
    corpus, queries, qrels = (
        pq.read_table(tmp_path / f"eval/retrieval/{name}.parquet").to_pylist()
        for name in ("corpus", "queries", "qrels")
    )
    table = cosines([query["text"] for query in queries], [document["text"] for document in corpus])
    relevant = {(row["query_id"], row["corpus_id"]) for row in qrels}
    discounts = 1 / np.log2(np.arange(10) + 2)
    scores = []
    for query, row in zip(queries, table, strict=True):
        hits = [(query["id"], corpus[i]["id"]) in relevant for i in np.argsort(-row)[:10]]
        scores.append(discounts[hits].sum() / discounts[:3].sum())
    # mteb keeps five decimals of retrieval scores.
    assert task.score.value == pytest.approx(round(np.mean(scores), 5), abs=1e-9)


def test_bitext_is_scikit_learns_f1_of_the_nearest_english_text(tmp_path: Path) -> None:
    a, b = random_texts(30, 1), random_texts(30, 2)
    b = [f"{x} {y}" for x, y in zip(a, b, strict=True)]
    rows = [{"s1": x, "s2": y, "lang1": "en", "lang2": "de"} for x, y in zip(a, b, strict=True)]
    task = score_task(task_folder(tmp_path, "bitext", pairs=rows))
    nearest = cosines(b, a).argmax(1)
    expected = f1_score(np.arange(30), nearest, average="weighted", zero_division=0)
    assert task.subsets.keys() == {"de-en"}
    assert 0.1 < expected < 0.95
    assert task.score.value == pytest.approx(expected, abs=1e-6)
    assert match_scores(nearest).mean() == pytest.approx(expected, abs=1e-9)


def test_classification_is_scikit_learns_accuracy_on_eight_texts_a_label(tmp_path: Path) -> None:
    labels = ["animal", "bird", "fish"]
    parts = {
        part: [
            {"text": f"{text} {WORDS[i % 3]}", "label": labels[i % 3], "lang": "en"}
            for i, text in enumerate(random_texts(90, seed))
        ]
        for part, seed in (("train", 1), ("test", 2))
    }
    task = score_task(task_folder(tmp_path, "classification", **parts))
    train, test = parts["train"], parts["test"]
    order, accuracies = list(range(90)), []
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)
        rows = [i for label in labels for i in [j for j in order if train[j]["label"] == label][:8]]
        rows.sort(key=order.index)
        model = LogisticRegression(max_iter=100, random_state=42)
        model.fit(embed([train[i]["text"] for i in rows]), [train[i]["label"] for i in rows])
        guesses = model.predict(embed([row["text"] for row in test]))
        accuracies.append(accuracy_score([row["label"] for row in test], guesses))
    assert task.score.value == pytest.approx(np.mean(accuracies), abs=1e-6)


def test_clustering_is_scikit_learns_v_measure_of_k_means(tmp_path: Path) -> None:
    rows = [
        {"text": f"{text} {WORDS[i % 4]}", "label": WORDS[i % 4]}
        for i, text in enumerate(random_texts(60))
    ]
    tasks = local_tasks(task_folder(tmp_path, "clustering", texts=rows))
    task, again = (
        evaluate(tiny_mteb_encoder(), tasks, results=tmp_path / name, progress=False).tasks[
            "clustering"
        ]
        for name in ("a", "b")
    )
    assert again.score == task.score, "a second model must get the same samples"
    rng = random.Random(42)
    rows = [rows[i] for i in rng.sample(range(60), k=60)]
    vectors, labels = embed([row["text"] for row in rows]), np.array([r["label"] for r in rows])
    model = MiniBatchKMeans(4, batch_size=512, init="k-means++", n_init=1, random_state=42)
    scores = []
    for _ in range(10):
        chosen = rng.choices(range(60), k=16_384)
        scores.append(v_measure_score(labels[chosen], model.fit_predict(vectors[chosen])))
    assert task.score.value == pytest.approx(np.mean(scores), abs=1e-6)
    assert task.score.low is None


def test_needles_are_scored_by_their_first_document(tmp_path: Path) -> None:
    path = retrieval_folder(tmp_path) / "eval/retrieval/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metric": "accuracy@1"}))
    assert score_task(tmp_path).metric == "ndcg_at_1"


def test_large_tables_are_cut_to_the_same_rows_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "sts", limited("sts", 10))

    def kept(*, whole: bool = False) -> tuple[dict[str, list[str]], str, str]:
        (task,) = local_tasks(tmp_path, whole=whole)
        task.load_data()
        texts = {lang: part["test"]["sentence2"] for lang, part in task.dataset.items()}
        return texts, task.metadata.description, task.metadata.dataset["revision"]

    path = sts_folder(tmp_path) / "eval/sts/pairs.parquet"
    texts, description, revision = kept()
    assert {lang: len(part) for lang, part in texts.items()} == {"de": 5, "en": 5}
    assert "pairs cut to 10 rows" in description
    everything, description, another = kept(whole=True)
    assert {lang: len(part) for lang, part in everything.items()} == {"de": 20, "en": 20}
    assert all(set(part) < set(everything[lang]) for lang, part in texts.items())
    assert "cut" not in description
    assert revision != another
    pq.write_table(pa.Table.from_pylist(pq.read_table(path).to_pylist()[::-1]), path)
    assert {lang: part[::-1] for lang, part in kept()[0].items()} == texts


def test_a_cut_corpus_keeps_only_queries_that_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "retrieval", limited("retrieval", 20))
    (task,) = local_tasks(retrieval_folder(tmp_path), whole=False)
    task.load_data()
    split = task.dataset["en"]["test"]
    documents = set(split["corpus"]["id"])
    assert len(documents) == 20
    assert 0 < len(split["queries"]) < 9
    assert set(split["queries"]["id"]) == split["relevant_docs"].keys()
    assert all(answers.keys() <= documents for answers in split["relevant_docs"].values())


def test_training_parts_keep_some_texts_of_every_label_and_language(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": WORDS[i % 2], "lang": "en" if i % 3 else "de"}
        for i, text in enumerate(random_texts(300))
    ]
    folder = task_folder(tmp_path, "classification", train=rows, test=rows)
    (task,) = local_tasks(folder, whole=False)
    task.load_data()
    for part in task.dataset.values():
        assert Counter(part["train"]["label"]) == {0: TRAIN_TEXTS, 1: TRAIN_TEXTS}
    assert sum(len(part["test"]) for part in task.dataset.values()) == 300


def test_every_kind_has_a_type_of_mteb_and_a_metric_of_the_table() -> None:
    for kind in KINDS.values():
        assert kind.mteb_type in get_args(TaskType)
        assert kind.folder is None or kind.folder.metric in METRICS


def test_every_task_has_a_column_of_the_report() -> None:
    for mteb_type in get_args(TaskType):
        assert report_column("any", mteb_type) in COLUMNS
    assert report_column("needle-512", "Retrieval") == COLUMNS[-1]


def test_a_new_metric_is_one_entry_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = retrieval_folder(tmp_path) / "eval/retrieval/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metric": "recall@10"}))
    recall = Metric("recall@10", partial(mean_over_queries, "recall.10"), "recall@10")
    monkeypatch.setitem(METRICS, "recall_at_10", recall)
    task = score_task(tmp_path)
    assert task.metric == "recall_at_10"
    assert task.score.low is not None
    assert len(task.draws) == MAX_STORED_DRAWS
    row = task_table([replace(summary("a", 0.5), tasks={"new": task})]).splitlines()[2]
    assert row.startswith("| new | recall@10 | **")
