"""The data folder: an argument, or an environment variable, or an error with the fix."""

from pathlib import Path

import pytest

from polyvec.data_folder import data_folder


def test_the_argument_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, named = tmp_path / "given", tmp_path / "named"
    given.mkdir()
    named.mkdir()
    monkeypatch.setenv("POLYVEC_DATA", str(named))
    assert data_folder(given) == given
    assert data_folder(None) == named


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_folder_the_error_says_how_to_get_data(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("POLYVEC_DATA", raising=False)
    else:
        monkeypatch.setenv("POLYVEC_DATA", value)
    with pytest.raises(ValueError, match=r"--data FOLDER or set POLYVEC_DATA.*docs/training\.md"):
        data_folder(None)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        data_folder(tmp_path / "nowhere")
