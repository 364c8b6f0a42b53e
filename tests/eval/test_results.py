"""Summaries survive the disk, and regressions are found."""

from dataclasses import replace
from pathlib import Path

import pytest

from polyvec.eval import read_summaries
from polyvec.eval.results import (
    Score,
    find_summary,
    model_labels,
    regressions,
    summary_path,
    write_summary,
)
from tests.eval.synthetic import summary


def test_a_summary_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    write_summary(tmp_path / "a.json", summary("a", 0.5))
    assert read_summaries(tmp_path) == [summary("a", 0.5)]
    with pytest.raises(ValueError, match="contains no results"):
        read_summaries(tmp_path / "none")


def test_a_regression_is_a_score_below_its_earlier_interval() -> None:
    before = summary("model", 0.5)
    assert regressions(before, summary("model", 0.491), before.tasks) == []
    worse = regressions(before, summary("model", 0.48), before.tasks)
    assert [sentence.split(":")[0] for sentence in worse] == [
        f"model {name}" for name in before.tasks
    ]


def test_a_score_without_an_interval_may_fall_by_a_point() -> None:
    before = summary("model", 0.5)
    before.tasks = {"topics": replace(before.tasks["topics"], score=Score(0.5))}
    assert regressions(before, summary("model", 0.4901), ["topics"]) == []
    assert len(regressions(before, summary("model", 0.4899), ["topics"])) == 1


def test_scores_of_other_data_are_not_compared() -> None:
    before, after = summary("model", 0.5), summary("model", 0.5)
    with pytest.raises(ValueError, match="no task in common"):
        regressions(before, after, [])
    after.tasks["topics"] = replace(after.tasks["topics"], revision="other")
    with pytest.raises(ValueError, match="the data of topics changed"):
        regressions(before, after, ["topics"])


def test_file_names_of_results_have_no_spaces_and_no_commas() -> None:
    path = summary_path(Path("results"), "polyvec-mini, two cores", "adapter none")
    assert path.name == "polyvec-mini-two-cores.adapter.none.json"


def test_two_models_of_one_name_have_two_files_and_two_headings(tmp_path: Path) -> None:
    one, two = (replace(summary("model", 0.5), revision=letter * 32) for letter in "ab")
    paths = []
    for each in (one, two):
        paths.append(find_summary(tmp_path, each.model, "", each.revision))
        write_summary(paths[-1], each)
    assert len(set(paths)) == 2
    assert [find_summary(tmp_path, s.model, "", s.revision) for s in (one, two)] == paths
    paths[0].unlink()
    assert find_summary(tmp_path, two.model, "", two.revision) == paths[1]
    assert model_labels([one, two]) == ["model (aaaaaaaa)", "model (bbbbbbbb)"]
    assert model_labels([one, one]) == ["model", "model"]


def test_scores_by_other_code_are_not_compared() -> None:
    before, after = summary("model", 0.5), summary("model", 0.5)
    after.tasks["topics"] = replace(after.tasks["topics"], scorer="another mteb")
    with pytest.raises(ValueError, match="the code of topics changed"):
        regressions(before, after, ["topics"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tasks": {"a": 1}}', '{"tasks": {}}'])
def test_another_file_is_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes.json").write_text(text)
    with pytest.raises(ValueError, match=r"notes\.json is no file of results"):
        read_summaries(tmp_path)
