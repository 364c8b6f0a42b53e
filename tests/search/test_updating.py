"""What an update embeds, and what is there if it ends too early."""

import errno
import os
import resource
from contextlib import contextmanager

import lancedb
import numpy as np
import pytest

from polyvec.search import BusyError, Index, NotUpdatedError, UnwritableError, commits, updating
from polyvec.search import index_table as index_table_module
from polyvec.search.commits import UNFINISHED
from polyvec.search.index_table import TABLE
from polyvec.search.table_files import TableFiles
from polyvec.search.updating import Updater


def read_rows(index):
    table = lancedb.connect(index.directory).open_table(TABLE)
    return (
        table.search()
        .limit(None)
        .to_arrow()
        .sort_by([("path", "ascending"), ("start", "ascending")])
    )


def describe_rows(index):
    names = ["path", "digest", "line", "start", "end", "text", "titles", "content"]
    return read_rows(index).select(names).to_pylist()


def read_vectors(index):
    return np.stack(read_rows(index)["vector"].to_numpy())


def make_fresh(index, tmp_path):
    """What an index made in one go has."""
    fresh = Index(
        index.folder, index.encoder, directory=tmp_path / "fresh", quantise=index.quantise
    )
    fresh.update()
    return fresh


@pytest.fixture
def embedded(monkeypatch):
    """The texts that updates embed."""
    texts = []
    make_vectors = Updater._make_vectors

    def spy(self, batch):
        texts.extend(batch)
        return make_vectors(self, batch)

    monkeypatch.setattr(Updater, "_make_vectors", spy)
    return texts


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of three passages, each of which is committed at once."""
    monkeypatch.setattr(commits, "BLOCK_PASSAGES", 3)
    monkeypatch.setattr(updating, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(updating, "MAX_COMMIT_SHARE", float("inf"))


def write_table(folder, numbers, name="table.jsonl"):
    (folder / name).write_text("".join(f'"row {number}"\n' for number in numbers))


def row_texts(index, path="table.jsonl"):
    return [row["text"] for row in describe_rows(index) if row["path"] == path]


@pytest.mark.parametrize("quantise", ["float", "int8", "binary"])
def test_only_new_passages_are_embedded(notes, searcher, tmp_path, embedded, quantise):
    write_table(notes, range(20))
    index = Index(notes, searcher, quantise=quantise)
    index.update()
    with (notes / "table.jsonl").open("a") as file:
        file.write('"row 20"\n')
    (notes / "sub").rename(notes / "renamed")
    (notes / "fox.md").rename(notes / "renamed" / "moved.md")
    (notes / "copy.txt").write_text("Der schnelle Fuchs springt.\n")
    embedded.clear()
    update = index.update()
    assert embedded == ["row 20"]
    assert (len(update.changed), len(update.removed), update.reused) == (4, 2, 24)
    fresh = make_fresh(index, tmp_path)
    assert describe_rows(index) == describe_rows(fresh)
    np.testing.assert_allclose(
        read_vectors(index), read_vectors(fresh), atol=1e-5 if quantise == "float" else 1
    )


def test_sparse_weights_are_used_again_too(
    notes, headed_config, headed_weights, tiny_model, tmp_path
):
    from polyvec import Encoder
    from polyvec.checkpoint import save_checkpoint

    files = {"tokenizer.json": (tiny_model / "tokenizer.json").read_bytes()}
    save_checkpoint(tmp_path / "headed", headed_config, headed_weights, files=files)
    index = Index(notes, Encoder.load(tmp_path / "headed"))
    index.update()
    before = read_rows(index).select(["tokens", "weights"]).to_pylist()
    (notes / "fox.md").rename(notes / "g.md")
    assert index.update().reused == 2
    assert read_rows(index).select(["tokens", "weights"]).to_pylist() == before


def test_a_new_version_of_the_format_embeds_nothing_again(notes, searcher, monkeypatch, embedded):
    Index(notes, searcher).update()
    monkeypatch.setattr(index_table_module, "FORMAT_VERSION", 99)
    embedded.clear()
    update = Index(notes, searcher).update()
    assert "another version" in update.rebuilt
    assert (embedded, update.reused, update.passages) == ([], 3, 3)


def test_passages_with_the_same_key_keep_their_own_vectors(notes, searcher, monkeypatch, tmp_path):
    monkeypatch.setattr("polyvec.search.passages.content_key", lambda text: 7)
    monkeypatch.setattr("polyvec.search.stored_vectors.content_key", lambda text: 7)
    index = Index(notes, searcher)
    index.update()
    (notes / "fox.md").rename(notes / "g.md")
    index.update()
    fresh = make_fresh(index, tmp_path)
    np.testing.assert_allclose(read_vectors(index), read_vectors(fresh), atol=1e-5)


class Stopped(BaseException):
    """Ends an update in the middle, as Ctrl-C does."""


@contextmanager
def stop_after(monkeypatch, count, module, name):
    """End the update when a function is called for the time number `count`."""
    calls, real = 0, getattr(module, name)

    def fake(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls > count:
            raise Stopped
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fake)
        yield


@pytest.mark.parametrize("before", [range(0), range(5, 16)])
@pytest.mark.parametrize("step", ["begin_change", "finish_change", "commit", "delete", "update"])
def test_an_update_of_a_large_file_that_ends_at_any_step_is_completed(
    notes, searcher, tmp_path, monkeypatch, small_blocks, embedded, before, step
):
    """The index can be searched meanwhile, and the next update embeds only what is missing."""
    index = Index(notes, searcher)
    write_table(notes, before)
    index.update()
    write_table(notes, range(11))
    module = {
        "begin_change": TableFiles,
        "finish_change": TableFiles,
        "commit": updating,
        "delete": lancedb.table.LanceTable,
        "update": lancedb.table.LanceTable,
    }[step]
    embedded.clear()
    num_stops = 0
    for count in range(20):
        with stop_after(monkeypatch, count, module, step):
            try:
                Index(notes, searcher).update()
                break
            except Stopped:
                num_stops += 1
        other = Index(notes, searcher)
        assert other.search("fox", top=3)
        texts = row_texts(other)
        assert len(texts) == len({*texts})
        assert other.count()[1] == 3 + len(texts)
    assert 0 < num_stops < 20
    # At most the block that was not committed is embedded again after a stop.
    new = {f"row {number}" for number in range(11)} - {f"row {number}" for number in before}
    assert new <= {*embedded} and len(embedded) <= 11 + 3 * num_stops
    assert row_texts(index) == [f"row {number}" for number in range(11)]
    assert describe_rows(index) == describe_rows(make_fresh(index, tmp_path))
    assert index.update().changed == []


def test_an_interrupted_update_is_told_and_its_passages_are_kept(
    notes, searcher, monkeypatch, small_blocks, embedded
):
    write_table(notes, range(30))
    index = Index(notes, searcher)
    with stop_after(monkeypatch, 4, updating, "commit"), pytest.raises(Stopped):
        index.update()
    files, passages = index.count()
    assert (files, passages) == (3, 12)
    digests = {row["digest"][0] for row in describe_rows(index) if row["path"] == "table.jsonl"}
    assert digests == {UNFINISHED}
    embedded.clear()
    update = index.update()
    assert (update.resumed, update.passages, len(embedded)) == (12, 33, 21)
    assert index.update().resumed == 0


def test_a_file_that_is_changed_back_after_an_interruption_is_as_it_was(
    notes, searcher, tmp_path, monkeypatch, small_blocks
):
    write_table(notes, range(8))
    index = Index(notes, searcher)
    index.update()
    write_table(notes, range(20, 30))
    with stop_after(monkeypatch, 2, updating, "commit"), pytest.raises(Stopped):
        index.update()
    assert "row 20" in row_texts(index) and "row 7" in row_texts(index)
    write_table(notes, range(8))
    index.update()
    assert describe_rows(index) == describe_rows(make_fresh(index, tmp_path))


def test_small_files_are_searchable_before_a_large_one_is_embedded(
    notes, searcher, monkeypatch, small_blocks
):
    write_table(notes, range(50), "a.jsonl")
    index = Index(notes, searcher)
    with stop_after(monkeypatch, 1, updating, "commit"), pytest.raises(Stopped):
        index.update()
    assert {row["path"] for row in describe_rows(index)} == {"fox.md", "sub/fuchs.txt"}


def test_progress_counts_the_bytes_of_what_changed(notes, searcher, small_blocks):
    write_table(notes, range(10))
    told = []
    index = Index(notes, searcher)
    index.update(lambda done, total: told.append((done, total)))
    total = sum(
        path.stat().st_size
        for path in notes.rglob("*.*")
        if path.is_file() and ".polyvec" not in path.parts
    )
    assert told == sorted(told)
    assert told[-1][1] == total and total - 5 <= told[-1][0] <= total
    told.clear()
    index.update(lambda done, total: told.append((done, total)))
    assert {*told} <= {(0, 0)}


def test_passages_of_files_that_cannot_be_read_are_found(notes, searcher):
    index = Index(notes, searcher)
    index.update()
    before = describe_rows(index)
    (notes / "fox.md").write_bytes(b"\x89PNG\0")
    (notes / "sub" / "fuchs.txt").unlink()
    os.mkfifo(notes / "sub" / "fuchs.txt")
    update = index.update()
    assert (update.changed, update.removed, len(update.skipped)) == ([], [], 2)
    assert describe_rows(index) == before


def test_an_index_is_emptied_only_on_request(notes, searcher, tmp_path):
    index = Index(notes, searcher, directory=tmp_path / "ix")
    index.update()
    notes.rename(tmp_path / "away")
    notes.mkdir()
    doubts = []
    update = index.update(forget=lambda doubt: bool(doubts.append(doubt)))
    assert (update.removed, update.passages, [update.doubt]) == ([], 3, doubts)
    assert index.search("fox")
    # Another model or another size would have nothing to embed.
    with pytest.raises(ValueError, match="must be rebuilt, since its vectors have 32"):
        Index(notes, searcher, directory=tmp_path / "ix", dim=8).update()
    (notes / "new.txt").write_text("new")
    assert index.update().changed == ["new.txt"]
    assert index.count() == (3, 4)
    assert len(index.update(forget=lambda doubt: True).removed) == 2
    assert index.count() == (1, 1)
    notes.joinpath("new.txt").unlink()
    notes.rmdir()
    (tmp_path / "away").rename(notes)
    assert len(index.update(forget=lambda doubt: True).changed) == 2


@pytest.mark.parametrize("break_lock", [lambda lock: lock.mkdir(), None])
def test_an_index_that_cannot_be_written_answers(notes, searcher, monkeypatch, break_lock):
    index = Index(notes, searcher)
    index.update()
    (notes / "new.txt").write_text("new")
    lock = index.directory / "lock"
    lock.unlink(missing_ok=True)
    if break_lock:
        break_lock(lock)
    else:
        error = OSError(errno.EROFS, "Read-only file system")

        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr("filelock.FileLock", fail)
    with pytest.raises(UnwritableError, match="cannot write the index"):
        index.update()
    other = Index(notes, searcher)
    assert (other.count(), len(other.search("fox", top=9))) == ((2, 3), 3)


def test_a_disk_that_fills_up_at_any_moment_leaves_an_index_that_answers(
    notes, searcher, tmp_path, small_blocks
):
    """The largest size of a file stands in for the space that is left on a disk."""
    index = Index(notes, searcher)
    index.update()
    write_table(notes, range(40))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    num_full = 0
    for size in (0, 100, 1_000, 3_000, 5_000, 10_000, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            index.update()
        except NotUpdatedError as error:
            assert isinstance(error, UnwritableError)
            num_full += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert Index(notes, searcher).search("fox", top=3)
    assert num_full > 3
    update = index.update()
    assert update.rebuilt == ""
    assert describe_rows(index) == describe_rows(make_fresh(index, tmp_path))


def test_a_default_index_keeps_itself_out_of_git_and_leaves_folders_of_the_user_alone(
    notes, searcher, tmp_path
):
    Index(notes, searcher).update()
    assert (notes / ".polyvec" / ".gitignore").read_text() == "*\n"
    (tmp_path / "mine").mkdir()
    Index(notes, searcher, directory=tmp_path / "mine").update()
    assert not (tmp_path / "mine" / ".gitignore").exists()
    Index(notes, searcher, directory=tmp_path / "new").update()
    assert (tmp_path / "new" / ".gitignore").exists()


def test_a_single_file_has_an_index_of_its_own(notes, searcher):
    whole = Index(notes, searcher)
    whole.update()
    index = Index(notes / "fox.md", searcher)
    assert index.update().changed == ["fox.md"]
    assert {hit.path for hit in index.search("fox", top=9)} == {"fox.md"}
    assert index.update().changed == []
    assert whole.update().passages == 3
    assert (notes / ".polyvec" / ".gitignore").exists()
    # The index of the folder is not taken for that of a file, or the other way round.
    with pytest.raises(ValueError, match="another folder"):
        Index(notes / "fox.md", searcher, directory=whole.directory).update()
    with pytest.raises(ValueError, match=r"another folder, fox\.md"):
        Index(notes, searcher, directory=index.directory).update()
    (notes / "fox.md").write_text("The fox jumps.")
    assert index.update().changed == ["fox.md"]


def test_an_index_that_is_busy_cannot_be_told_from_one_that_is_not_updated():
    assert issubclass(BusyError, NotUpdatedError) and issubclass(UnwritableError, NotUpdatedError)
