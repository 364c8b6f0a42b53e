"""Unreadable is not gone, and what may be out of reach is not forgotten without a word."""

import errno
import os
import time
from pathlib import Path

import pytest

from polyvec.search import files
from polyvec.search.changes import IndexedFile, find_changes
from polyvec.search.files import list_files, read_file


@pytest.fixture
def folder(tmp_path):
    """Ten files of the same size in two folders."""
    folder = tmp_path / "folder"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            (folder / name / f"{number}.txt").write_text(f"{name} {number}")
    return folder


def index_files(folder, **options):
    """What an index of the folder would have: one passage of each file."""
    return {
        path: IndexedFile(read_file(folder, path).digest, 1)
        for path in list_files(folder, **options)
    }


def compare(folder, indexed, *, indexed_at=0.0, **options):
    return find_changes(folder, folder, indexed, indexed_at=indexed_at, **options)


def fail_to_read(path, monkeypatch):
    real_open = Path.open

    def fake_open(self, *arguments, **options):
        if self == path:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real_open(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", fake_open)


def replace_by_pipe(path, monkeypatch):
    path.unlink()
    os.mkfifo(path)


def replace_by_dangling_link(path, monkeypatch):
    path.unlink()
    path.symlink_to("nowhere.txt")


def grow_too_large(path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 5)
    path.write_text("longer")
    for other in path.parent.parent.rglob("*.txt"):
        if other != path:
            other.write_text("short")


@pytest.mark.parametrize(
    "break_file", [fail_to_read, replace_by_pipe, replace_by_dangling_link, grow_too_large]
)
def test_a_file_that_cannot_be_read_stays_and_is_named(folder, monkeypatch, break_file):
    indexed = index_files(folder)
    path = folder / "one" / "3.txt"
    break_file(path, monkeypatch)
    changes = compare(folder, indexed)
    assert (changes.gone, changes.doubtful) == ([], [])
    assert "one/3.txt" not in changes.files
    [sentence] = changes.skipped
    assert sentence.startswith(f"{path}: ") and sentence.endswith("; its 1 passages are kept")


@pytest.mark.parametrize("closed", ["", "one"])
def test_what_is_below_a_folder_that_cannot_be_listed_stays(folder, monkeypatch, closed):
    indexed = index_files(folder)
    real_scandir = os.scandir

    def fake_scandir(path):
        if Path(path) == folder / closed:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", fake_scandir)
    changes = compare(folder, indexed)
    assert (changes.files, changes.gone, changes.doubtful) == ({}, [], [])
    assert changes.skipped == [
        f"{folder / closed}: Permission denied; the passages of its files are kept"
    ]


def test_a_lost_root_loses_nothing(folder, tmp_path):
    indexed = index_files(folder)
    folder.rename(tmp_path / "away")
    changes = compare(folder, indexed)
    assert (changes.gone, changes.doubtful, len(changes.skipped)) == ([], [], 1)


def test_deleted_files_are_gone_and_new_and_changed_ones_come_smallest_first(folder):
    indexed = index_files(folder)
    (folder / "one" / "0.txt").unlink()
    (folder / "one" / "1.txt").write_text("a long text")
    (folder / "new.txt").write_text("new")
    changes = compare(folder, indexed)
    assert list(changes.files.items()) == [("new.txt", 3), ("one/1.txt", 11)]
    assert (changes.gone, changes.doubtful, changes.skipped) == (["one/0.txt"], [], [])


def test_a_file_that_becomes_a_folder_is_gone_and_so_are_files_of_a_folder_that_becomes_one(folder):
    indexed = index_files(folder)
    (folder / "one" / "0.txt").unlink()
    (folder / "one" / "0.txt").mkdir()
    (folder / "one" / "0.txt" / "new.txt").write_text("new")
    changes = compare(folder, indexed)
    assert (list(changes.files), changes.gone) == (["one/0.txt/new.txt"], ["one/0.txt"])
    for path in (folder / "two").iterdir():
        path.unlink()
    (folder / "two").rmdir()
    (folder / "two").write_text("a file")
    # The time of the last update is later than all of this.
    indexed["one/1.txt"] = indexed["one/1.txt"]._replace(num_passages=99)
    changes = compare(folder, indexed, indexed_at=time.time() + 9)
    assert {"two/0.txt", "two/4.txt"} <= {*changes.gone}


def test_moved_files_are_gone_from_where_they_were_without_a_doubt(folder):
    indexed = index_files(folder)
    (folder / "one").rename(folder / "a")
    (folder / "two").rename(folder / "b")
    changes = compare(folder, indexed)
    assert len(changes.files) == 10
    assert (changes.gone, changes.doubtful) == (sorted(indexed), [])


def test_the_loss_of_most_passages_is_doubtful(folder):
    indexed = index_files(folder)
    for path in (folder / "one").iterdir():
        path.unlink()
    changes = compare(folder, indexed)
    assert (len(changes.gone), changes.doubt) == (5, "")
    (folder / "two" / "0.txt").unlink()
    changes = compare(folder, indexed)
    assert (changes.gone, len(changes.doubtful)) == ([], 6)
    assert changes.doubt.startswith("6 of the 10 passages")
    changes.settle(forget=False)
    assert (changes.gone, changes.files) == ([], {})
    changes.settle(forget=True)
    assert len(changes.gone) == 6
    # Most files, but few passages.
    weights = {path: file._replace(num_passages=99) for path, file in indexed.items()}
    assert compare(folder, indexed | {"two/4.txt": weights["two/4.txt"]}).doubt == ""


def test_files_that_are_empty_now_are_as_doubtful_as_missing_ones(folder):
    indexed = index_files(folder)
    for path in list(indexed)[:6]:
        (folder / path).write_text("")
    for forget, count in ((False, 0), (True, 6)):
        changes = compare(folder, indexed)
        assert len(changes.doubtful) == 6
        changes.settle(forget=forget)
        assert (len(changes.files), changes.gone) == (count, [])


def test_an_empty_folder_that_was_not_changed_since_is_an_unmounted_disk(folder):
    (folder / "one" / "deep").mkdir()
    (folder / "one" / "0.txt").rename(folder / "one" / "deep" / "0.txt")
    indexed = index_files(folder)
    indexed["two/0.txt"] = IndexedFile("", 99)
    for path in sorted((folder / "one").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    changed_at = (folder / "one").stat().st_mtime
    lost = sorted(path for path in indexed if path.startswith("one/"))
    assert compare(folder, indexed, indexed_at=changed_at).gone == lost
    changes = compare(folder, indexed, indexed_at=changed_at + 1)
    assert (changes.gone, sorted(changes.doubtful)) == ([], lost)
    assert f"{folder / 'one'} is empty" in changes.doubt


def test_a_rebuild_loses_what_cannot_be_read(folder, monkeypatch):
    indexed = index_files(folder)
    for number in range(5):
        replace_by_pipe(folder / "one" / f"{number}.txt", monkeypatch)
    changes = compare(folder, indexed, rebuild=True)
    assert (len(changes.files), len(changes.gone), changes.doubt) == (5, 5, "")
    assert "kept" not in changes.skipped[0]
    replace_by_pipe(folder / "two" / "0.txt", monkeypatch)
    assert len(compare(folder, indexed, rebuild=True).doubtful) == 6


def test_links_that_lead_out_are_followed_on_request_only(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (outside / "back").symlink_to(folder)
    (folder / "a").symlink_to(outside)
    (folder / "a.txt").symlink_to(outside / "secret.txt")
    (folder / "inside.txt").symlink_to(folder / "one" / "1.txt")
    (folder / "inside").symlink_to(folder / "one")
    (folder / "itself.txt").symlink_to(folder / "itself.txt")
    inner = {f"{name}/{number}.txt" for name in ("one", "two") for number in range(5)}
    changes = compare(folder, {})
    assert {*changes.files} == inner | {"inside.txt"}
    assert len([sentence for sentence in changes.skipped if "--follow-links" in sentence]) == 1
    changes = compare(folder, {}, follow_links=True)
    assert {*changes.files} == inner | {"inside.txt", "a.txt", "a/secret.txt"}
    # The disk of a link that was followed is not mounted.
    indexed = index_files(folder / "two") | {"a/secret.txt": IndexedFile("", 1)}
    outside.rename(tmp_path / "away")
    changes = compare(folder, indexed, follow_links=True)
    assert "a/secret.txt" not in changes.gone


def test_a_single_file_is_a_folder_of_one(folder):
    place = folder / "one" / "0.txt"
    changes = find_changes(place, place.parent, {}, indexed_at=0.0)
    assert changes.files == {"0.txt": 5}
