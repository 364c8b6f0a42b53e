"""Every mistake in a task folder is a sentence that names the file and the column."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from jaxtyping import Float32

from polyvec.eval import evaluate, local_tasks
from polyvec.eval.task_kinds import KINDS, METRICS
from tests.eval.synthetic import (
    embed,
    random_texts,
    retrieval_folder,
    score_task,
    sts_folder,
    task_folder,
    tiny_mteb_encoder,
)

Change = Callable[[dict[str, Any]], object]


def load(root: Path) -> None:
    for task in local_tasks(root):
        task.load_data()


def change_meta(root: Path, **fields: object) -> None:
    (path,) = root.glob("eval/*/meta.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_rows(path: Path, change: Change) -> None:
    """Write a table again as JSON lines, after `change` saw every row."""
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        change(row)
    path.unlink()
    lines = (json.dumps(row) for row in rows)
    path.with_suffix(".jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ('{"languages": ["en"]}', "'type' must be a text"),
        ('{"type": 3, "languages": ["en"]}', "'type' must be a text"),
        ('{"type": "sts"}', "'languages' must be a list"),
        ('{"type": "sts", "languages": "en"}', "'languages' must be a list"),
        ('{"type": "sts", "languages": [1]}', "'languages' holds 1"),
        ('{"type": "sts", "languages": ["en"], "name": "a/b"}', "must not hold a slash"),
        ('{"type": "stz", "languages": ["en"]}', "'type' is 'stz'.*pair_classification"),
        ('{"type": "sts", "languages": ["en"], "metric": 5}', "'metric' must be a text"),
        ('{"type": "sts", "languages": ["english"]}', "'english' is no ISO 639 code"),
    ],
)
def test_a_mistake_in_the_description_names_the_file(
    tmp_path: Path, content: str, reason: str
) -> None:
    (sts_folder(tmp_path) / "eval/sts/meta.json").write_text(content)
    with pytest.raises(ValueError, match=rf"eval/sts.*{reason}"):
        load(tmp_path)


@pytest.mark.parametrize("metric", ["recall@5", "ndcg@100", "map", "accuracy@1"])
def test_a_metric_that_the_type_lacks_is_refused(tmp_path: Path, metric: str) -> None:
    change_meta(sts_folder(tmp_path), metric=metric)
    with pytest.raises(ValueError, match=rf"sts/meta\.json: 'metric' is '{metric}'.*spearman"):
        local_tasks(tmp_path)


def test_the_metrics_of_every_type_can_be_named(tmp_path: Path) -> None:
    for kind in KINDS.values():
        if kind.folder is not None:
            assert METRICS[kind.folder.metric].mteb_type == kind.mteb_type
    for metric in ("", "ndcg@10", "NDCG@10 on documents", "ndcg_at_10"):
        change_meta(retrieval_folder(tmp_path), metric=metric)
        (task,) = local_tasks(tmp_path)
        assert task.metadata.main_score == "ndcg_at_10"


def drop(name: str) -> Change:
    return lambda row: row.pop(name)


def put(name: str, value: object) -> Change:
    return lambda row: row.update({name: value})


@pytest.mark.parametrize(
    ("table", "change", "reason"),
    [
        ("corpus", drop("id"), "id"),
        ("corpus", drop("text"), "text"),
        ("corpus", put("text", None), "text is missing"),
        ("corpus", put("text", 7), "text is 7"),
        ("corpus", put("id", "d0"), "column id holds 'd0' twice"),
        ("queries", put("id", "q0"), "column id holds 'q0' twice"),
        ("queries", put("text", " "), "text is empty"),
        ("qrels", drop("score"), "score"),
        ("qrels", put("score", 0.5), "score is 0.5, must be a whole number"),
        ("qrels", put("score", "good"), "score is 'good'"),
        ("qrels", put("score", float("nan")), "score is nan"),
        ("qrels", put("query_id", "who"), "query_id holds 'who', which is no id"),
        ("qrels", put("corpus_id", "what"), "corpus_id holds 'what', which is no id"),
    ],
)
def test_a_mistake_in_a_table_names_file_and_column(
    tmp_path: Path, table: str, change: Change, reason: str
) -> None:
    change_rows(retrieval_folder(tmp_path) / f"eval/retrieval/{table}.parquet", change)
    with pytest.raises(ValueError, match=rf"retrieval/{table}\.jsonl.*{reason}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("score", 1), "column score is the same in every row"),
        (put("score", None), "score is missing"),
        (put("lang", "fr"), "column lang holds 'fr'"),
        (put("lang", None), "needs the column lang in every row"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(
    tmp_path: Path, change: Change, reason: str
) -> None:
    change_rows(sts_folder(tmp_path) / "eval/sts/pairs.parquet", change)
    with pytest.raises(ValueError, match=rf"pairs\.jsonl.*{reason}"):
        load(tmp_path)


def labelled(labels: list[object]) -> list[dict[str, Any]]:
    texts = random_texts(len(labels))
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def test_labels_that_cannot_be_learnt_are_refused(tmp_path: Path) -> None:
    train, one = labelled(["a", "b"] * 10), labelled(["a"] * 10)
    root = task_folder(tmp_path, "classification", train=train, test=labelled(["a", "c"]))
    change_meta(root, languages=["en"])
    with pytest.raises(ValueError, match=r"test\.parquet: the column label holds 'c'"):
        load(root)
    task_folder(tmp_path, "classification", train=one, test=one)
    change_meta(root, languages=["en"])
    with pytest.raises(ValueError, match=r"train\.parquet: the column label is the same"):
        load(root)


@pytest.mark.parametrize("label", ["yes", 2, 0.5, None])
def test_a_label_of_pairs_that_is_neither_is_refused(tmp_path: Path, label: object) -> None:
    rows = [{"text1": "ant", "text2": text, "label": label} for text in random_texts(4)]
    change_meta(task_folder(tmp_path, "pair_classification", pairs=rows), languages=["en"])
    with pytest.raises(ValueError, match=r"pairs\.parquet.*label is .*entailment"):
        load(tmp_path)


@pytest.mark.parametrize("labels", [[1, 0], [True, False], [1.0, 0.0], ["1", "0"]])
def test_labels_of_pairs_have_one_meaning_in_every_form(
    tmp_path: Path, labels: list[object]
) -> None:
    rows = [
        {"text1": "ant bee", "text2": text, "label": labels[i % 2]}
        for i, text in enumerate(random_texts(6))
    ]
    change_meta(task_folder(tmp_path, "pair_classification", pairs=rows), languages=["en"])
    (task,) = local_tasks(tmp_path)
    task.load_data()
    assert task.dataset["en"]["test"]["labels"] == [1, 0] * 3


def test_a_missing_table_and_a_second_one_are_named(tmp_path: Path) -> None:
    folder = sts_folder(tmp_path) / "eval/sts"
    (folder / "pairs.csv").write_text("text1,text2,score\na,b,1\n")
    with pytest.raises(ValueError, match=r"pairs twice.*pairs\.csv and pairs\.parquet"):
        load(tmp_path)
    (folder / "pairs.csv").unlink()
    (folder / "pairs.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"pairs\.parquet is not a whole Parquet file"):
        load(tmp_path)
    (folder / "pairs.parquet").unlink()
    with pytest.raises(ValueError, match=r"sts lacks the table pairs"):
        load(tmp_path)


def test_two_folders_with_one_task_are_refused(tmp_path: Path) -> None:
    folder = sts_folder(tmp_path) / "eval/sts"
    (tmp_path / "eval/again").mkdir()
    for path in folder.iterdir():
        (tmp_path / "eval/again" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="both hold the task 'sts'"):
        local_tasks(tmp_path)


def test_tables_in_other_forms_and_with_numbers_for_ids_score_the_same(tmp_path: Path) -> None:
    expected = score_task(retrieval_folder(tmp_path / "parquet"))
    folder = retrieval_folder(tmp_path / "other") / "eval/retrieval"
    for table in ("corpus", "queries", "qrels"):
        rows = pq.read_table(folder / f"{table}.parquet").to_pylist()
        (folder / f"{table}.parquet").unlink()
        for row in rows:
            row.pop("title", None)
            for name in row.keys() & {"id", "query_id", "corpus_id"}:
                row[name] = int(row[name][1:])
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (folder / f"{table}.csv").write_text("\n".join(lines))
    assert score_task(tmp_path / "other").score == expected.score


def test_queries_without_answers_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = retrieval_folder(tmp_path) / "eval/retrieval"
    table = pq.read_table(folder / "qrels.parquet")
    others = table.filter([name != "q0" for name in table["query_id"].to_pylist()])
    pq.write_table(others, folder / "qrels.parquet")
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert "1 queries have no row and are not scored" in caplog.text


def test_no_row_of_own_data_is_left_out(tmp_path: Path) -> None:
    """By default: neither of large tables, nor tasks with long documents, nor texts of clusters."""
    corpus = [{"id": i, "text": f"ant bee {'cat ' * 400}{i}"} for i in range(2_000)]
    queries = [{"id": i, "text": f"dog {i}"} for i in range(2)]
    qrels = [{"query_id": i, "corpus_id": i, "score": 1} for i in range(2)]
    task_folder(tmp_path, "retrieval", corpus=corpus, queries=queries, qrels=qrels)
    task_folder(tmp_path, "clustering", texts=labelled(["a", "b"] * 1_500))
    embedded: list[str] = []

    def spy(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        embedded.extend(texts)
        return embed(texts)

    for task in local_tasks(tmp_path):
        task.load_data()
        (subset,) = task.dataset.values()
        if task.metadata.name == "retrieval":
            assert len(subset["test"]["corpus"]) == 2_000
        else:
            task.n_clusters = 1
            evaluate(tiny_mteb_encoder(spy), [task], results=tmp_path / "r", progress=False)
            assert set(embedded) == set(subset["test"]["sentences"])
