"""Task folders are selected by name and type, and described as mteb expects."""

from pathlib import Path

import pytest
from mteb.languages import check_language_code

from polyvec.eval import local_tasks
from polyvec.eval.task_folders import language_script
from tests.eval.synthetic import retrieval_folder, sts_folder


def test_the_longest_corpora_only_run_if_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sts_folder(tmp_path)
    retrieval_folder(tmp_path)
    assert len(local_tasks(tmp_path, whole=False)) == 2
    monkeypatch.setattr("polyvec.eval.task_folders.MAX_CHARACTERS", 100)
    said: list[str] = []
    tasks = local_tasks(tmp_path, whole=False, report=said.append)
    assert [task.metadata.name for task in tasks] == ["sts"]
    assert "left out retrieval" in said[0]
    assert len(local_tasks(tmp_path)) == 2
    assert len(local_tasks(tmp_path, ["retrieval"], whole=False)) == 1


def test_a_name_that_selects_nothing_is_an_error_that_lists_the_tasks(tmp_path: Path) -> None:
    sts_folder(tmp_path)
    assert len(local_tasks(tmp_path, ["st*", "sts"])) == 1
    with pytest.raises(ValueError, match=r"no task 'stz'.*sts"):
        local_tasks(tmp_path, ["stz"])
    with pytest.raises(ValueError, match=r"no task folder: a task folder holds meta\.json"):
        local_tasks(tmp_path / "eval" / "sts")


@pytest.mark.parametrize("lang", ["en", "zh-Hant", "pcm", "arq", "tw", "no", "sh", "am"])
def test_languages_are_named_as_mteb_names_them(lang: str) -> None:
    check_language_code(language_script(lang))
