"""What the tests of the search share: the tiny model, and a folder of notes."""

import pytest

from polyvec import Encoder


@pytest.fixture(scope="module")
def searcher(tiny_model):
    return Encoder.load(tiny_model)


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / "fox.md").write_text("# Foxes\nThe quick brown fox.\n\n## Den\n\nIt sleeps there.\n")
    (folder / "sub" / "fuchs.txt").write_text("Der schnelle Fuchs springt.\n")
    return folder
