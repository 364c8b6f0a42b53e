import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import datetime
from random import Random

import filelock
import lancedb
import numpy as np
import pytest

from polyvec.checkpoint import save_checkpoint
from polyvec.encoder import Encoder
from polyvec.heads import maxsim
from polyvec.search import BusyError, Index
from polyvec.search.index_table import TABLE
from polyvec.search.passages import PASSAGE_TOKENS
from polyvec.search.table_files import TableFiles
from polyvec.search.updating import Updater


def rows(index):
    table = lancedb.connect(index.directory).open_table(TABLE)
    found = table.search().limit(None).to_arrow().to_pylist()
    return sorted((row["path"], row["start"], row["end"], row["text"]) for row in found)


def fresh(folder, searcher, tmp_path):
    """What an index made in one go would hold."""
    index = Index(folder, searcher, directory=tmp_path / "fresh")
    index.update()
    return rows(index)


def test_a_passage_is_found_by_its_own_words_with_file_and_line(notes, searcher):
    index = Index(notes, searcher)
    update = index.update()
    assert (update.files, update.passages, update.changed) == (2, 3, ["fox.md", "sub/fuchs.txt"])
    hits = index.search("It sleeps there.", top=3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    den = next(hit for hit in hits if "sleeps" in hit.text)
    assert (den.path, den.line, den.page) == ("fox.md", 4, None)
    assert (notes / den.path).read_text()[den.start : den.end] == den.text


def test_dense_parts_are_the_cosines_of_question_and_passages(notes, searcher):
    index = Index(notes, searcher, dim=16)
    index.update()
    hits = index.search("fox", top=9, by="ranks", weights={"bm25": 0.0})
    assert len(hits) == 3
    for hit in hits:
        headings = {"## De": "Foxes\n"}.get(hit.text[:5], "")
        passage = searcher.encode(headings + hit.text, task="retrieval.passage", dim=16)
        question = searcher.encode("fox", task="retrieval.query", dim=16)
        assert hit.parts["dense"].score == pytest.approx(float(passage[0] @ question[0]), abs=1e-4)
        assert hit.score == pytest.approx(61 / (60 + hit.parts["dense"].rank))


@pytest.mark.parametrize("by", ["ranks", "scores"])
def test_a_hits_score_is_the_sum_of_its_parts_shares(notes, searcher, by):
    index = Index(notes, searcher)
    index.update()
    hits = index.search("Der Fuchs", top=9, by=by, weights={"dense": 0.5, "bm25": 2.0})
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.score == pytest.approx(sum(part.share for part in hit.parts.values()))
    assert hits[0].path == "sub/fuchs.txt"
    assert hits[0].parts["bm25"].share == pytest.approx(2 / 2.5)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("The quick brown fox jumps over the CAFÉ.", "café"),
        ("敏捷的棕色狐狸跳过懒狗，然后在森林里睡觉。", "狐狸"),
        ("東京タワーは港区にあります。", "東京"),
        ("สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ", "จิ้งจอก"),
        ("भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।", "लोमड़ी"),
        ("الثعلب البني السريع يقفز فوق الكلب الكسول.", "الثعلب"),
        ("우리는 여우를 숲에서 보았다.", "숲에서"),
        ("def parse_args(code): raise Failure(code)", "args"),
    ],
)
def test_words_are_found_in_scripts_with_and_without_spaces(notes, searcher, text, word):
    (notes / "other.txt").write_text(text)
    index = Index(notes, searcher)
    index.update()
    hits = index.search(word, weights={"dense": 0.0})
    assert [hit.path for hit in hits] == ["other.txt"]


def test_a_question_without_known_words_is_answered_by_meaning_alone(notes, searcher):
    index = Index(notes, searcher)
    index.update()
    hits = index.search("???", top=9)
    assert len(hits) == 3
    assert [hit.score for hit in hits] == [hit.parts["dense"].score for hit in hits]
    assert not index.search("???", weights={"dense": 0.0})


def test_words_count_by_what_a_question_and_a_passage_share(notes, searcher):
    index = Index(notes, searcher)
    index.update()

    def share(question):
        return index.search(question, top=9, weights={"dense": 0.0})[0].score

    # The whole of it, whatever the order and the case; some of it; less of it.
    assert share("FUCHS der") == pytest.approx(1)
    assert 0.1 < share("Der Fuchs xylophone marimba") < share("Der Fuchs xylophone") < 0.9


@pytest.mark.parametrize("quantise", ["float", "int8", "binary"])
def test_a_passage_found_by_its_words_alone_has_a_cosine_too(notes, searcher, quantise):
    for number in range(300):
        (notes / f"{number}.txt").write_text(f"Den {number}.")
    index = Index(notes, searcher, quantise=quantise)
    index.update()
    nearest = index.search("den 37", top=100, weights={"bm25": 0.0})
    unlike = {str(n) for n in range(300)} - {hit.path.split(".")[0] for hit in nearest}
    word = min(unlike)
    question = searcher.encode(f"den {word}", task="retrieval.query")[0]
    hit = index.search(f"den {word}", top=1, weights={"bm25": 99.0})[0]
    assert hit.path == f"{word}.txt"
    passage = searcher.encode(f"Den {word}.", task="retrieval.passage")[0]
    assert hit.parts["dense"].score == pytest.approx(float(passage @ question), abs=0.01)


@pytest.fixture(scope="module")
def many_headed(tiny_config, tiny_weights, tiny_model, tmp_path_factory):
    """The tiny model with both heads."""
    rng = np.random.default_rng(1)
    shapes = {"sparse.weight": (1, 32), "sparse.bias": (1,), "multi_vector.weight": (8, 32)}
    shapes["multi_vector.bias"] = (8,)
    heads = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    # Random states have no words that weigh nothing.
    heads["sparse.bias"] += 20
    config = dataclasses.replace(tiny_config, sparse_head=True, multi_vector_dim=8)
    files = {"tokenizer.json": (tiny_model / "tokenizer.json").read_bytes()}
    folder = tmp_path_factory.mktemp("models") / "heads"
    save_checkpoint(folder, config, tiny_weights | heads, files=files)
    return Encoder.load(folder)


def test_sparse_weights_take_part_where_the_model_has_the_head(notes, searcher, many_headed):
    Index(notes, searcher).update()
    index = Index(notes, many_headed)
    assert "sparse head" in index.update().rebuilt
    hits = index.search("The fox sleeps.", top=9, weights={"sparse": 1.0})
    asked = many_headed.encode_sparse(["The fox sleeps."], task="retrieval.query")
    told = {
        text: many_headed.encode_sparse([text], task="retrieval.passage")
        for text in {
            "# Foxes\nThe quick brown fox.",
            "Foxes\n## Den\n\nIt sleeps there.",
            "Der schnelle Fuchs springt.",
        }
    }
    products = {text.splitlines()[-1]: asked.dot(sparse)[0, 0] for text, sparse in told.items()}
    found = {
        hit.text.splitlines()[-1]: hit.parts["sparse"].score
        for hit in hits
        if "sparse" in hit.parts
    }
    assert found == pytest.approx({text: p for text, p in products.items() if p > 0}, rel=1e-3)
    assert found
    alone = index.search("The fox sleeps.", weights={"dense": 0.0, "bm25": 0.0, "sparse": 1.0})
    assert [set(hit.parts) for hit in alone] == [{"sparse"}] * len(found)


def test_reranked_hits_are_in_the_order_of_maxsim(notes, many_headed):
    index = Index(notes, many_headed)
    index.update()
    hits = index.search("fox", top=2, rerank=3)
    for rank, hit in enumerate(hits, 1):
        assert (hit.parts["maxsim"].rank, hit.parts["maxsim"].share) == (rank, hit.score)
        assert {part.share for name, part in hit.parts.items() if name != "maxsim"} == {0}
    query = many_headed.encode_multi_vector("fox", task="retrieval.query")[0]
    texts = [
        "# Foxes\nThe quick brown fox.",
        "Foxes\n## Den\n\nIt sleeps there.",
        "Der schnelle Fuchs springt.",
    ]
    scores = maxsim(query, many_headed.encode_multi_vector(texts, task="retrieval.passage"))
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True)[:2], rel=1e-3)
    assert hits[0].text.splitlines()[-1] == texts[int(scores.argmax())].splitlines()[-1]


@pytest.mark.parametrize(
    ("weights", "rerank", "outputs"),
    [
        ({"maxsim": 0.0}, 0, ["dense"]),
        ({}, 0, ["dense", "multi_vector"]),
        ({"sparse": 0.3, "maxsim": 0.0}, 0, ["dense", "sparse"]),
        ({}, 20, ["dense", "multi_vector"]),
        ({"sparse": 0.3}, 20, ["dense", "sparse", "multi_vector"]),
    ],
)
def test_a_search_encodes_its_question_once(
    notes, many_headed, monkeypatch, weights, rerank, outputs
):
    index = Index(notes, many_headed)
    index.update()
    batches, calls = [], []

    def spy_on_engine(name):
        run = getattr(many_headed.engine, name)
        monkeypatch.setattr(
            many_headed.engine,
            name,
            lambda batch, *spans: batches.append(len(batch.lengths)) or run(batch, *spans),
        )

    spy_on_engine("pool")
    spy_on_engine("hidden_and_pool")
    encode_all = Encoder.encode_all

    def spy(self, texts, **options):
        calls.append((len(texts), options["outputs"]))
        return encode_all(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode_all", spy)
    assert index.search("The fox sleeps.", weights=weights, rerank=rerank)
    reranked = [(3, ["multi_vector"])] if rerank else []
    assert calls == [(1, outputs), *reranked]
    assert sorted(batches) == [1, *([3] if rerank else [])]


def test_a_head_that_the_model_lacks_is_refused(notes, searcher):
    index = Index(notes, searcher)
    index.update()
    with pytest.raises(ValueError, match="no sparse head"):
        index.search("fox", weights={"sparse": 1.0})
    with pytest.raises(ValueError, match="multi-vector head"):
        index.search("fox", rerank=5)
    with pytest.raises(ValueError, match="no component 'dens'"):
        index.search("fox", weights={"dens": 1.0})
    with pytest.raises(ValueError, match="every weight is 0"):
        index.search("fox", weights={"dense": 0.0, "bm25": 0.0})


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.md", {"fox.md"}),
        ("sub/*", {"sub/fuchs.txt"}),
        ("*f?chs*", {"sub/fuchs.txt"}),
        ("fox", set()),
        ("it's.(", set()),
    ],
)
def test_a_pattern_chooses_files_before_they_are_ranked(notes, searcher, pattern, paths):
    index = Index(notes, searcher)
    index.update()
    assert {hit.path for hit in index.search("fox Fuchs", top=9, path=pattern)} == paths


def test_a_date_leaves_out_files_written_earlier(notes, searcher):
    os.utime(notes / "fox.md", (0, datetime(2020, 5, 5).timestamp()))
    index = Index(notes, searcher)
    index.update()
    assert {hit.path for hit in index.search("fox", top=9, since=datetime(2021, 1, 1))} == {
        "sub/fuchs.txt"
    }
    assert len({hit.path for hit in index.search("fox", top=9, since=datetime(2020, 5, 5))}) == 2


def test_similar_files_include_the_copy_of_a_file_and_never_the_file(notes, searcher, tmp_path):
    (notes / "copy.txt").write_text("Der schnelle Fuchs springt!\n")
    for number in range(3):
        (notes / f"{number}.txt").write_text("fox over dog. " * 200 * (number + 1))
    index = Index(notes, searcher)
    index.update()
    hits = index.find_similar(notes / "sub" / "fuchs.txt", top=9)
    assert hits[0].path == "copy.txt"
    assert sorted(hit.path for hit in hits) == ["0.txt", "1.txt", "2.txt", "copy.txt", "fox.md"]
    outside = tmp_path / "outside.txt"
    outside.write_text("Der schnelle Fuchs springt.\n")
    assert index.find_similar(outside, top=1)[0].score == pytest.approx(1, abs=1e-3)


def test_only_what_changed_is_indexed_again(notes, searcher, monkeypatch, tmp_path):
    index = Index(notes, searcher)
    index.update()
    encoded = []
    make_vectors = Updater._make_vectors

    def spy(self, texts):
        encoded.extend(texts)
        return make_vectors(self, texts)

    monkeypatch.setattr(Updater, "_make_vectors", spy)
    assert index.update().changed == []
    assert encoded == []
    (notes / "new.txt").write_text("A new file.")
    (notes / "sub" / "fuchs.txt").write_text("Der Fuchs schläft.")
    assert index.update().changed == ["new.txt", "sub/fuchs.txt"]
    assert sorted(encoded) == ["A new file.", "Der Fuchs schläft."]
    monkeypatch.undo()
    assert rows(index) == fresh(notes, searcher, tmp_path)


def test_deleted_shortened_and_emptied_files_leave_nothing_behind(notes, searcher, tmp_path):
    (notes / "it's.txt").write_text("one. " * 20 * PASSAGE_TOKENS)
    index = Index(notes, searcher)
    assert index.update().passages > 10
    (notes / "it's.txt").write_text("one.")
    (notes / "fox.md").write_text("")
    (notes / "sub" / "fuchs.txt").unlink()
    update = index.update()
    assert (update.files, update.passages) == (1, 1)
    assert (update.changed, update.removed) == (["fox.md", "it's.txt"], ["sub/fuchs.txt"])
    assert rows(index) == fresh(notes, searcher, tmp_path)
    assert index.update().changed == []


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


@pytest.mark.parametrize("quantise", ["int8", "binary"])
def test_a_form_is_kept_with_the_index_and_made_of_floats_without_a_model(
    notes, searcher, tmp_path, monkeypatch, quantise
):
    plain = Index(notes, searcher)
    plain.update()
    by_meaning = {"bm25": 0.0}
    expected = {hit.start: hit.parts["dense"].score for hit in plain.search("fox", top=9)}
    made = Index(notes, searcher, directory=tmp_path / "made", quantise=quantise)
    made.update()
    changed = Index(notes, searcher, quantise=quantise)
    with pytest.raises(ValueError, match=f"its vectors are float, not {quantise}"):
        changed.search("fox")
    with monkeypatch.context() as patch:
        patch.setattr(Updater, "_make_rows", None)
        update = changed.update()
    assert (update.rebuilt, update.changed) == (f"its vectors are float, not {quantise}", [])
    for index in (made, changed, Index(notes, searcher)):
        assert index.quantise == quantise
        assert index.update().rebuilt == ""
        hits = index.search("fox", top=9, weights=by_meaning)
        found = {hit.start: hit.parts["dense"].score for hit in hits}
        assert found == pytest.approx(expected, abs=0.02)
        assert [hit.path for hit in index.find_similar(notes / "fox.md")] == ["sub/fuchs.txt"]
        assert {hit.path for hit in index.search("fox", path="*.md")} == {"fox.md"}
    assert rows(changed) == rows(made)
    (notes / "new.txt").write_text("Another fox.")
    assert changed.update().changed == ["new.txt"]
    assert len(changed.search("fox", top=9)) == 4
    back = Index(notes, searcher, quantise="float")
    assert "not float" in back.update().rebuilt
    assert back.search("fox", top=9)[0].parts["dense"].score


def test_a_dim_is_kept_with_the_index(notes, searcher):
    Index(notes, searcher, dim=16).update()
    index = Index(notes, searcher)
    assert (index.dim, index.update().rebuilt) == (16, "")


def test_one_process_writes_and_others_read(notes, searcher):
    index = Index(notes, searcher)
    index.update()
    with filelock.FileLock(index.directory / "lock"):
        with pytest.raises(BusyError):
            Index(notes, searcher).update()
        assert index.search("fox")


def test_the_index_of_another_folder_is_refused(notes, searcher, tmp_path):
    Index(notes, searcher, directory=tmp_path / "ix").update()
    with pytest.raises(ValueError, match="another folder"):
        Index(notes / "sub", searcher, directory=tmp_path / "ix").update()


def test_an_index_inside_its_folder_moves_with_it(notes, searcher, tmp_path):
    Index(notes, searcher).update()
    moved = notes.rename(tmp_path / "moved")
    assert Index(moved, searcher).update().changed == []


def test_an_update_killed_at_any_moment_leaves_an_index_that_the_next_one_completes(
    notes, searcher, tiny_model, tmp_path
):
    for number in range(40):
        (notes / f"{number:02}.txt").write_text(f"Note {number}. " * 3)
    index = Index(notes, searcher)
    script = f"""
        from pathlib import Path
        from polyvec.encoder import Encoder
        from polyvec.search import Index, commits, updating
        commits.BLOCK_PASSAGES = 3
        updating.COMMIT_SECONDS, updating.MAX_COMMIT_SHARE = 0, float("inf")
        target = Index(Path({str(notes)!r}), Encoder.load({str(tiny_model)!r}))
        target.update(lambda done, total: done and print(done, flush=True))
    """
    random = Random(5)
    for _ in range(3):
        run = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE
        )
        # Some blocks further than before, and then some moments, wherever that is.
        for _ in range(3):
            run.stdout.readline()
        time.sleep(random.uniform(0, 0.05))
        run.kill()
        run.communicate()
        assert run.returncode == -signal.SIGKILL
        assert index.search("Note 1.", top=3)
    left = len(index.update().changed)
    assert 0 < left < 42
    assert rows(index) == fresh(notes, searcher, tmp_path)
    found = index.search("7", top=99, weights={"dense": 0.0})
    assert [hit.path for hit in found] == ["07.txt"]


def test_an_index_broken_off_before_its_words_are_indexed_is_made_anew(notes, searcher):
    index = Index(notes, searcher)
    index.update()
    TableFiles(index.directory / f"{TABLE}.lance").begin_change()
    lancedb.connect(index.directory).open_table(TABLE).drop_index("words_idx")
    with pytest.raises(ValueError, match="interrupted"):
        index.search("fox")
    assert "interrupted" in index.update().rebuilt
    assert index.search("fox")


def test_a_folder_that_is_none_and_an_index_that_is_none_are_refused(notes, searcher):
    with pytest.raises(ValueError, match="no folder"):
        Index(notes / "nowhere", searcher)
    with pytest.raises(ValueError, match="does not exist"):
        Index(notes, searcher).search("fox")
