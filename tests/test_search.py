import os
import signal
import subprocess
import sys
import textwrap

import filelock
import lancedb
import numpy as np
import pytest

from polyvec.checkpoint import save_checkpoint
from polyvec.encoder import Encoder
from polyvec.search import BusyError, Index
from polyvec.search.index import CHUNK_TOKENS, TABLE


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


def rows(index):
    table = lancedb.connect(index.place).open_table(TABLE)
    found = table.search().limit(None).to_arrow().to_pylist()
    return sorted((row["path"], row["start"], row["end"], row["text"]) for row in found)


def fresh(folder, searcher, tmp_path):
    """What an index made in one go would hold."""
    index = Index(folder, searcher, place=tmp_path / "fresh")
    index.update()
    return rows(index)


def test_a_passage_is_found_by_its_own_words_with_file_and_line(notes, searcher):
    index = Index(notes, searcher)
    update = index.update()
    assert (update.files, update.chunks, update.changed) == (2, 3, 2)
    hits = index.search("It sleeps there.", top=3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    den = next(hit for hit in hits if "sleeps" in hit.text)
    assert (den.path, den.line) == ("fox.md", 4)
    assert (notes / den.path).read_text()[den.start : den.end] == den.text


def test_scores_are_the_cosines_of_question_and_passages(notes, searcher):
    index = Index(notes, searcher, dim=16)
    index.update()
    for hit in index.search("fox", top=9):
        headings = {"It sl": "Foxes\n", "## De": "Foxes\n"}.get(hit.text[:5], "")
        passage = searcher.encode(headings + hit.text.strip(), task="retrieval.passage", dim=16)
        question = searcher.encode("fox", task="retrieval.query", dim=16)
        assert hit.score == pytest.approx(float(passage[0] @ question[0]), abs=1e-4)


def test_only_what_changed_is_indexed_again(notes, searcher, monkeypatch, tmp_path):
    index = Index(notes, searcher)
    index.update()
    encoded = []
    encode = Encoder.encode

    def spy(self, texts, **options):
        encoded.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode", spy)
    assert index.update().changed == 0
    assert encoded == []
    (notes / "new.txt").write_text("A new file.")
    (notes / "sub" / "fuchs.txt").write_text("Der Fuchs schläft.")
    assert index.update().changed == 2
    assert sorted(encoded) == ["A new file.", "Der Fuchs schläft."]
    monkeypatch.undo()
    assert rows(index) == fresh(notes, searcher, tmp_path)


def test_deleted_shortened_and_emptied_files_leave_nothing_behind(notes, searcher, tmp_path):
    (notes / "it's.txt").write_text("one. " * 20 * CHUNK_TOKENS)
    index = Index(notes, searcher)
    assert index.update().chunks > 10
    (notes / "it's.txt").write_text("one.")
    (notes / "fox.md").write_text("")
    (notes / "sub" / "fuchs.txt").unlink()
    update = index.update()
    assert (update.files, update.chunks, update.changed, update.removed) == (1, 1, 2, 1)
    assert rows(index) == fresh(notes, searcher, tmp_path)
    assert index.update().changed == 0


def test_what_is_not_text_is_reported_and_the_rest_is_indexed(notes, searcher):
    (notes / "binary.txt").write_bytes(b"\x89PNG\xff\xfe")
    (notes / "nul.md").write_bytes(b"a\0b")
    (notes / "wide.txt").write_bytes("Füchse".encode("utf-16"))
    (notes / "bom.txt").write_bytes(b"\xef\xbb\xbfword")
    (notes / "picture.png").write_bytes(b"\x89PNG")
    (notes / ".hidden.md").write_text("secret")
    os.mkfifo(notes / "pipe.txt")
    index = Index(notes, searcher)
    update = index.update()
    assert sorted(sentence.split(": ")[1][:9] for sentence in update.skipped) == [
        "not a reg",
        "not text ",
        "not text ",
    ]
    texts = {path: text for path, _, _, text in rows(index)}
    assert texts["wide.txt"] == "Füchse"
    assert texts["bom.txt"] == "word"
    assert ".hidden.md" not in texts


def test_another_dim_or_model_rebuilds_the_index_and_says_so(
    notes, searcher, tiny_model, tiny_config, tiny_weights, tmp_path
):
    Index(notes, searcher).update()
    smaller = Index(notes, searcher, dim=8)
    with pytest.raises(ValueError, match="32 numbers, not 8"):
        smaller.search("fox")
    assert "not 8" in smaller.update().rebuilt
    assert smaller.search("fox")
    weights = {name: np.roll(weight, 1) for name, weight in tiny_weights.items()}
    files = {"tokenizer.json": (tiny_model / "tokenizer.json").read_bytes()}
    save_checkpoint(tmp_path / "other", tiny_config, weights, files=files)
    other = Index(notes, Encoder.load(tmp_path / "other"), dim=8)
    assert "another model" in other.update().rebuilt
    assert other.update().rebuilt == ""


def test_one_process_writes_and_others_read(notes, searcher):
    index = Index(notes, searcher)
    index.update()
    with filelock.FileLock(index.place / "lock"):
        with pytest.raises(BusyError):
            Index(notes, searcher).update()
        assert index.search("fox")


def test_the_index_of_another_folder_is_refused(notes, searcher, tmp_path):
    Index(notes, searcher, place=tmp_path / "ix").update()
    with pytest.raises(ValueError, match="another folder"):
        Index(notes / "sub", searcher, place=tmp_path / "ix").update()


def test_an_index_inside_its_folder_moves_with_it(notes, searcher, tmp_path):
    Index(notes, searcher).update()
    moved = notes.rename(tmp_path / "moved")
    assert Index(moved, searcher).update().changed == 0


def test_a_killed_update_leaves_a_readable_index_that_the_next_one_completes(
    notes, searcher, tiny_model, tmp_path
):
    index = Index(notes, searcher)
    index.update()
    for number in range(12):
        (notes / f"{number:02}.txt").write_text(f"Note {number}. " * 3)
    script = f"""
        import os, signal
        from pathlib import Path
        from polyvec.encoder import Encoder
        from polyvec.search import Index, index
        index.COMMIT_CHUNKS = 2
        done = []
        def progress(path):
            done.append(path)
            if len(done) == 7:
                os.kill(os.getpid(), signal.SIGKILL)
        Index(Path({str(notes)!r}), Encoder.load({str(tiny_model)!r})).update(progress)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert index.search("It sleeps there.")
    left = index.update().changed
    assert 0 < left < 12
    assert rows(index) == fresh(notes, searcher, tmp_path)


def test_a_folder_that_is_none_and_an_index_that_is_none_are_refused(notes, searcher):
    with pytest.raises(ValueError, match="no folder"):
        Index(notes / "nowhere", searcher)
    with pytest.raises(ValueError, match="does not exist"):
        Index(notes, searcher).search("fox")


@pytest.mark.parametrize("part", ["_versions", "data"])
def test_a_damaged_index_says_how_to_go_on(notes, searcher, part):
    index = Index(notes, searcher)
    index.update()
    for path in (index.place / f"{TABLE}.lance" / part).iterdir():
        path.write_bytes(b"garbage")
    for action in (index.update, lambda: index.search("fox")):
        with pytest.raises(ValueError, match="delete it"):
            action()
