"""Whatever happens to the bytes of an index on disk, it never answers differently."""

import os
import shutil
from random import Random

import lancedb
import pytest

from polyvec.search import Index
from polyvec.search.index_table import TABLE
from polyvec.search.table_files import FILE, HINT, DamagedError, TableFiles


@pytest.fixture
def index(notes, searcher):
    """An index with deleted rows, several fragments and older versions."""
    index = Index(notes, searcher)
    index.update()
    (notes / "fox.md").write_text("# Foxes\nThe quick brown fox barks.\n")
    (notes / "den.txt").write_text("The den is warm.\n")
    index.update()
    return index


def answers(index):
    return [(hit.path, hit.text, round(hit.score, 5)) for hit in index.search("fox den", top=9)]


def damage(path, contents):
    if contents is None:
        path.unlink()
    else:
        path.write_bytes(contents)


def damaged_contents(path, random):
    """The contents that a damaged file may have; None stands for a file that is removed."""
    whole = path.read_bytes()
    for flip in (0x80, 1 << random.randrange(8)):
        changed = bytearray(whole)
        changed[random.randrange(len(whole))] ^= flip
        yield bytes(changed)
    yield whole[: random.randrange(len(whole))]
    yield whole + b"\0"
    yield None


def test_no_damage_to_any_file_changes_an_answer(index, searcher, tmp_path, capfd):
    """The damaged index is refused or rebuilt. Nothing panics on the way."""
    random, expected = Random(6), answers(index)
    whole = tmp_path / "whole"
    shutil.copytree(index.directory, whole)
    files = [path for path in sorted(index.directory.rglob("*")) if path.is_file()]
    files = [path for path in files if path.name not in ("lock", ".gitignore")]
    assert len(files) > 15
    cases = [(path, contents) for path in files for contents in damaged_contents(path, random)]
    capfd.readouterr()
    for number, (path, contents) in enumerate(cases):
        damage(path, contents)
        with pytest.raises(DamagedError, match=r"is damaged \(.*\); update it to rebuild it"):
            index.search("fox den")
        # A rebuild takes a while, so only some are tried.
        if number % 31 == 0:
            rebuilt = Index(index.folder, searcher)
            assert rebuilt.update().rebuilt == "it was damaged"
            assert answers(rebuilt) == expected
            assert rebuilt.update().rebuilt == ""
            shutil.rmtree(index.directory)
            shutil.copytree(whole, index.directory)
        path.write_bytes((whole / path.relative_to(index.directory)).read_bytes())
    assert answers(index) == expected
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda table: (table / "data" / "more.lance").write_bytes(b"x"),
        lambda table: (table / "_versions" / "1.manifest").write_bytes(b"x"),
        lambda table: os.mkfifo(table / "pipe"),
        lambda table: (shutil.rmtree(table), table.write_bytes(b"x")),
        lambda table: shutil.rmtree(table / "_versions"),
        lambda table: (table.parent / FILE).write_bytes(b'{"closed": true, "files": {"a": 1}}'),
        lambda table: (table.parent / FILE).write_bytes(b"[" * 100_000),
        lambda table: ((table.parent / FILE).unlink(), (table.parent / FILE).mkdir()),
    ],
)
def test_files_that_are_added_or_replaced_lead_to_a_rebuild(index, searcher, change):
    expected = answers(index)
    change(index.directory / f"{TABLE}.lance")
    with pytest.raises(DamagedError):
        Index(index.folder, searcher).search("fox den")
    rebuilt = Index(index.folder, searcher)
    assert rebuilt.update().rebuilt == "it was damaged"
    assert answers(rebuilt) == expected


def test_damage_in_a_running_process_is_noticed(index):
    expected = answers(index)
    [path, *_] = sorted((index.directory / f"{TABLE}.lance" / "data").iterdir())
    contents = bytearray(path.read_bytes())
    contents[100] ^= 1
    path.write_bytes(contents)
    with pytest.raises(DamagedError, match="has changed"):
        index.search("fox den")
    assert index.update().rebuilt == "it was damaged"
    assert answers(index) == expected


def test_a_table_that_was_removed_is_made_anew_under_the_old_list(index):
    expected = answers(index)
    shutil.rmtree(index.directory / f"{TABLE}.lance")
    assert index.update().rebuilt == ""
    assert answers(index) == expected


def test_an_interrupted_change_is_no_damage_but_unreadable_files_are(index, searcher):
    files = TableFiles(index.directory / f"{TABLE}.lance")
    files.begin_change()
    table = lancedb.connect(index.directory).open_table(TABLE)
    table.delete("path = 'den.txt'")
    assert not files.is_closed and files.find_damage() == ""
    assert answers(Index(index.folder, searcher))
    resumed = Index(index.folder, searcher)
    update = resumed.update()
    assert (update.rebuilt, update.changed, files.is_closed) == ("", ["den.txt"], True)
    files.begin_change()
    versions = index.directory / f"{TABLE}.lance" / "_versions"
    newest = min(path for path in versions.iterdir() if path.suffix == ".manifest")
    newest.with_name(f"{int(newest.stem) - 1}.manifest").write_bytes(b"unfinished")
    (versions.parent / HINT).unlink()
    assert resumed.update().rebuilt == ""
    assert len(answers(resumed)) == 3
