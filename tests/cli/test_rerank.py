from typing import get_args, get_type_hints

from polyvec.cli.rerank import rerank
from polyvec.reranking import HYBRID, RETRIEVAL
from polyvec.terminal import ExitStatus


def test_a_file_without_texts_has_status_1(polyvec, tiny_model, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    code, out, _ = polyvec("rerank", "fox", tmp_path / "empty.txt", "--model", tiny_model)
    assert (code, out) == (ExitStatus.INCOMPLETE, "")


def test_the_choices_are_the_models_outputs_and_their_combination():
    by = get_args(get_type_hints(rerank)["by"])
    assert set(by) == {*HYBRID, "hybrid"}
    assert RETRIEVAL
