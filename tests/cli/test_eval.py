import pytest

from polyvec.cli.eval import BUNDLED, EvalOptions
from polyvec.eval import models


def test_the_bundled_model_has_one_name():
    assert BUNDLED == models.BUNDLED


def test_without_a_data_folder_the_error_says_how_to_get_one(monkeypatch):
    monkeypatch.delenv("POLYVEC_DATA", raising=False)
    with pytest.raises(ValueError, match="--data FOLDER or set POLYVEC_DATA"):
        EvalOptions().select_tasks()


def test_the_environment_names_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYVEC_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"{tmp_path} contains no task folder"):
        EvalOptions().select_tasks()
