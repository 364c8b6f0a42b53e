"""A file that cannot be used gives one sentence when it is opened, and one status later."""

import os
import sqlite3
import sys
from contextlib import closing
from random import Random

import pytest

from polyvec.server.errors import ApiError
from polyvec.server.stores import sqlite_file as sqlite_file_module
from polyvec.server.stores.sqlite_file import SqliteFile

TABLES = ("create table things (name text not null)", "create index by_name on things (name)")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A lock is waited for only briefly."""
    monkeypatch.setattr(sqlite_file_module, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(sqlite_file_module, "START_LOCK_SECONDS", 0.05)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "things.sqlite"


def open_file(path, version=2):
    return SqliteFile(path, name="--things", application_id=7, version=version, tables=TABLES)


def fill(path, rows=200):
    with open_file(path).connect() as database:
        database.executemany(
            "insert into things values (?)", [(f"{n} " * 50,) for n in range(rows)]
        )
    # Without its log of changes, the file alone holds everything.
    with closing(sqlite3.connect(path)) as database:
        database.execute("pragma journal_mode=delete")
    return path.read_bytes()


def run(statements):
    def change(path):
        with closing(sqlite3.connect(path)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.write_bytes(Random(1).randbytes(9000)), "is not a SQLite database"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to(path.parent), "is not a regular file"),
        (run(["create table bookmarks (url text)"]), "a database of another program"),
        (run(["create table x (y)", "pragma application_id=8"]), "a database of another program"),
        (run(["pragma user_version=2"]), "a database of another program"),
        (run([TABLES[0]]), "an older version of polyvec"),
        (lambda path: open_file(path, version=3), "a newer version of polyvec"),
        (
            lambda path: (open_file(path), run(["alter table things add column z text"])(path)),
            "is damaged: its tables have changed",
        ),
        (lambda path: path.write_bytes(fill(path)[:-8192]), "is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(path, change, sentence):
    change(path)
    with pytest.raises(ValueError, match=sentence) as caught:
        open_file(path)
    assert str(caught.value).startswith(f"--things {path} ")


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*none; create it"):
        open_file(tmp_path / "none" / "things.sqlite")


def test_another_programs_file_is_left_as_it_is(path):
    run(["create table bookmarks (url text)"])(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another program"):
        open_file(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select name from sqlite_master").fetchall() == [("bookmarks",)]
        assert database.execute("pragma user_version").fetchone() == (0,)
    assert len(path.read_bytes()) == len(before)


def test_a_locked_file_is_503_and_nothing_is_changed(path):
    file = open_file(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("begin immediate")
        with pytest.raises(ApiError) as caught, file.connect() as database:
            database.execute("insert into things values ('a')")
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
        with pytest.raises(ValueError, match="locked by another program"):
            open_file(path)
    with file.connect() as database:
        assert database.execute("select * from things").fetchall() == []


def test_a_full_disk_is_507_and_nothing_is_changed(path):
    file = open_file(path)
    with pytest.raises(ApiError) as caught, file.connect() as database:
        # SQLite's own limit of a file's size gives the error of a full disk.
        database.execute("pragma max_page_count=8")
        database.executemany("insert into things values (?)", [("a" * 3000,)] * 20)
    assert caught.value.status == 507
    with file.connect() as database:
        assert database.execute("select * from things").fetchall() == []


def test_a_file_that_is_damaged_later_is_500_with_a_line_in_the_log(path, caplog):
    file = open_file(path)
    fill(path)
    path.write_bytes(Random(2).randbytes(9000))
    with pytest.raises(ApiError) as caught, file.connect() as database:
        database.execute("select * from things").fetchall()
    assert caught.value.status == 500
    assert str(path) not in caught.value.message
    [line] = [record.getMessage() for record in caplog.records]
    assert str(path) in line and "is not a SQLite database" in line


@pytest.mark.skipif(sys.platform == "win32", reason="needs the permissions of POSIX")
@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write every file")
def test_a_file_that_may_not_be_written_is_named(path):
    open_file(path)
    path.chmod(0o400)
    with pytest.raises(ValueError, match="make the file and its folder writable"):
        open_file(path)


def test_a_damaged_byte_gives_a_sentence_or_changes_nothing_of_the_structure(path):
    whole = fill(path)
    random = Random(3)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        try:
            with open_file(path).connect() as database:
                database.execute("select * from things").fetchall()
        except ValueError as error:
            assert str(error).startswith(f"--things {path} ")
        except ApiError as error:
            assert error.status == 500
