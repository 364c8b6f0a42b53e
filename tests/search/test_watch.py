import os
from queue import SimpleQueue

import filelock
import pytest
from watchfiles import Change

from polyvec.encoder import Encoder
from polyvec.search import BusyError, Index
from polyvec.search.watch import is_relevant, watch_index


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        (Change.modified, "a.md", True),
        (Change.added, "sub/A.PDF", True),
        (Change.modified, "a.png", False),
        (Change.deleted, "was-it-a-folder", True),
        (Change.added, "there", True),
        (Change.modified, ".hidden/a.md", False),
        (Change.modified, "node_modules/a.md", False),
        (Change.deleted, ".polyvec/lock", False),
        (Change.deleted, "there/index/lock", False),
    ],
)
def test_what_cannot_change_the_index_is_no_news(tmp_path, change, path, expected):
    (tmp_path / "there").mkdir()
    place = tmp_path / "there" / "index"
    assert is_relevant(change, tmp_path / path, tmp_path, place) == expected


@pytest.fixture
def index(tiny_model, tmp_path):
    (tmp_path / "fox.md").write_text("A fox sleeps.\n")
    return Index(tmp_path, Encoder.load(tiny_model))


@pytest.mark.timeout(300)
def test_the_first_update_comes_first_and_then_news_and_questions(index):
    questions, done = SimpleQueue(), []
    questions.put("where?")
    events = watch_index(index, questions, lambda *progress: done.append(progress))
    assert next(events).changed == ["fox.md"]
    assert done[-1] == (14, 14)
    assert next(events) == "where?"
    (index.folder / "new.md").write_text("The lazy dog.\n")
    assert next(events).changed == ["new.md"]
    (index.folder / "new.md").rename(index.folder / "moved.md")
    event = next(events)
    assert (event.changed, event.removed) == (["moved.md"], ["new.md"])
    # Touched without another content: the next that is told is the question.
    os.utime(index.folder / "fox.md")
    questions.put("what?")
    assert next(events) == "what?"
    events.close()


@pytest.mark.timeout(300)
def test_an_index_that_another_process_writes_is_tried_until_it_is_free(index):
    index.update()
    questions = SimpleQueue()
    questions.put("meanwhile")
    (index.folder / "new.md").write_text("The lazy dog.\n")
    with filelock.FileLock(index.directory / "lock"):
        events = watch_index(index, questions)
        assert isinstance(next(events), BusyError)
        assert next(events) == "meanwhile"
    assert next(events).changed == ["new.md"]
    events.close()
