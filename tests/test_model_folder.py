"""The folder of a model."""

import pytest

from polyvec.model_folder import BUNDLED, find_model


@pytest.mark.parametrize("name", [None, "mini", "polyvec-mini"])
def test_the_bundled_model_has_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model(name) == BUNDLED


@pytest.mark.parametrize("name", ["mini", "polyvec-mini"])
def test_a_folder_with_that_name_is_meant_where_it_is(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model(name).resolve() == tmp_path / name


def test_every_verb_takes_the_name(polyvec):
    code, out, _ = polyvec("info", "mini")
    assert code == 0 and str(BUNDLED) in out
