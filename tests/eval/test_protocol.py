"""mteb's protocol gets the right adapter and the right vector for each text."""

from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float32
from scipy.stats import spearmanr

from polyvec.eval import evaluate, local_tasks
from tests.eval.synthetic import (
    cosines,
    embed,
    random_texts,
    retrieval_folder,
    score_task,
    sts_folder,
    task_folder,
    tiny_mteb_encoder,
)


def test_each_kind_of_task_is_embedded_with_the_papers_adapter(tmp_path: Path) -> None:
    sts_folder(tmp_path)
    retrieval_folder(tmp_path)
    seen: dict[str, set[str | None]] = {}

    def spy(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        for text in texts:
            seen.setdefault(text, set()).add(adapter)
        return embed(texts)

    for kind, query in (("sts", "text-matching"), ("retrieval", "retrieval.query")):
        seen.clear()
        tasks = local_tasks(tmp_path, [kind])
        evaluate(tiny_mteb_encoder(spy), tasks, results=tmp_path / "results", progress=False)
        assert seen[random_texts(1, 2)[0]] == {query}
        assert seen[random_texts(1, 1)[0]] == {query.replace("query", "passage")}


def test_equal_texts_are_encoded_once_and_keep_their_places(tmp_path: Path) -> None:
    others = ["ant bee", "cat dog elk", "ant fox", "hen", "ant bee"]
    rows = [
        {"text1": "ant bee", "text2": text, "score": float(i), "lang": "en"}
        for i, text in enumerate(others)
    ]
    asked: list[str] = []

    def spy(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        asked.extend(texts)
        return embed(texts)

    task = score_task(task_folder(tmp_path, "sts", pairs=rows), tiny_mteb_encoder(spy))
    assert sorted(asked) == ["ant bee", "ant bee", "ant fox", "cat dog elk", "hen"]
    expected = spearmanr([1, *cosines(["ant bee"], others[1:4])[0], 1], range(5)).statistic
    assert task.score.value == pytest.approx(expected, abs=1e-6)
