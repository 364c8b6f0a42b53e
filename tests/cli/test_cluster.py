from inspect import signature
from typing import get_args, get_type_hints

from polyvec.cli.cluster import cluster
from polyvec.search.clustering import TASK, Layout
from polyvec.terminal import ExitStatus


def test_no_clusters_are_a_normal_answer_and_skipped_files_are_not(polyvec, tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text("A fox sleeps.\n")
    assert polyvec("cluster", tmp_path, "--model", tiny_model)[0] == ExitStatus.DONE
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    code, _, err = polyvec("cluster", tmp_path, "--model", tiny_model)
    assert code == ExitStatus.INCOMPLETE
    assert "skipped" in err


def test_choices_and_defaults_are_those_of_the_room():
    assert get_args(get_args(get_type_hints(cluster)["layout"])[0]) == get_args(Layout)
    assert signature(cluster).parameters["task"].default == TASK


def test_a_folder_without_texts_is_told(polyvec, tiny_model, tmp_path):
    code, out, err = polyvec("cluster", tmp_path, "--model", tiny_model)
    assert (code, out) == (ExitStatus.INCOMPLETE, "")
    assert f"no text to cluster in {tmp_path}" in err
