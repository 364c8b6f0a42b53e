import dataclasses
import unicodedata

import numpy as np
import pytest

from polyvec.checkpoint import save_checkpoint
from polyvec.encoder import Encoder
from polyvec.heads import maxsim
from polyvec.search import Index
from polyvec.search.answers import select_passages


@pytest.fixture(scope="module")
def with_tokens(tiny_config, tiny_weights, tiny_model, tmp_path_factory):
    """The tiny model with a multi-vector head of an odd size."""
    rng = np.random.default_rng(1)
    heads = {
        "multi_vector.weight": rng.normal(size=(13, 32)).astype(np.float32),
        "multi_vector.bias": rng.normal(size=13).astype(np.float32),
    }
    config = dataclasses.replace(tiny_config, multi_vector_dim=13)
    files = {"tokenizer.json": (tiny_model / "tokenizer.json").read_bytes()}
    folder = tmp_path_factory.mktemp("models") / "tokens"
    save_checkpoint(folder, config, tiny_weights | heads, files=files)
    return Encoder.load(folder)


def indexed(folder, encoder, **files):
    """An index of a folder with these texts; `sub__fox_txt` names `sub/fox.txt`."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_txt", ".txt").replace("_md", ".md")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    index = Index(folder, encoder)
    index.update()
    return index


def paths(answer):
    return [hit.path for hit in answer]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("서울 사무실 계약", "사무실"),
        ("у місті Київ", "КИЇВ"),
        ("ở Việt Nam", "việt"),
        ("Αθήνα", "ΑΘΗΝΑ"),
    ],
)
def test_a_word_is_found_in_every_form_of_unicode(tmp_path, searcher, text, word, form):
    other = "NFD" if form == "NFC" else "NFC"
    index = indexed(
        tmp_path, searcher, a_txt=unicodedata.normalize(form, text), b_txt="fox and dog"
    )
    question = unicodedata.normalize(other, word)
    assert paths(index.search(question, weights={"dense": 0.0})) == ["a.txt"]


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("pattern", ["*Müller*", "M?ller Việt.txt", "Müller Việt.txt"])
def test_a_pattern_of_paths_fits_every_form_of_unicode(tmp_path, searcher, written, typed, pattern):
    name = unicodedata.normalize(written, "Müller Việt.txt")
    (tmp_path / name).write_text("The fox.")
    index = indexed(tmp_path, searcher, other_txt="The fox.")
    answer = index.search("fox", path=unicodedata.normalize(typed, pattern))
    assert paths(answer) == [name]


def test_a_phrase_in_quotation_marks_is_in_every_passage(tmp_path, searcher):
    index = indexed(
        tmp_path,
        searcher,
        a_txt="The Quick\nbrown fox.",
        b_txt="The brown and quick fox.",
        c_txt="The quickbrown fox, quick brownies.",
        d_txt="它是棕色狐狸。",
    )
    assert paths(index.search('"quick brown" fox')) == ["a.txt"]
    assert paths(index.search("fox “quick” «brown»")) in (["a.txt", "b.txt"], ["b.txt", "a.txt"])
    assert paths(index.search('"棕色"')) == ["d.txt"]
    assert not index.search('"the fox\'s (den"')


def test_identical_passages_are_shown_once_and_name_their_copies(tmp_path, searcher):
    index = indexed(
        tmp_path, searcher, a_txt="A fox.", sub__a_txt="A fox.", b_txt="A fox.", c_txt="A dog."
    )
    answer = index.search("A fox.", top=9)
    assert [(hit.path, hit.copies) for hit in answer] == [
        ("a.txt", ("b.txt", "sub/a.txt")),
        ("c.txt", ()),
    ]


def test_each_file_has_as_many_passages_as_asked_for(tmp_path, searcher):
    rows = "\n".join(f"the fox {number}" for number in range(300))
    index = indexed(tmp_path, searcher, b_txt="snow", c_txt="a dog")
    (tmp_path / "a.csv").write_text(f"text\n{rows}\n")
    index.update()
    answer = index.search("the fox", top=5, per_file=1)
    # The rows take all first places, and the other files are found behind them.
    assert sorted(paths(answer)) == ["a.csv", "b.txt", "c.txt"]
    assert paths(index.search("the fox", top=5, per_file=3)).count("a.csv") == 3
    assert paths(index.search("the fox", top=5)) == ["a.csv"] * 5


def test_a_copy_is_shown_if_its_original_is_not():
    rows = {
        ("a", 0): {"text": "one"},
        ("a", 5): {"text": "two"},
        ("b", 0): {"text": "two"},
        ("c", 0): {"text": "one"},
    }
    assert select_passages(list(rows), rows, 1) == {("a", 0): ["c"], ("b", 0): []}


def test_the_least_score_leaves_out_passages_and_the_best_score_is_known(notes, searcher):
    index = Index(notes, searcher)
    index.update()
    answer = index.search("It sleeps there.", top=9)
    scores = [hit.score for hit in answer]
    assert len(index.search("It sleeps there.", top=9, min_score=scores[1])) == 2
    none = index.search("It sleeps there.", min_score=scores[0] + 0.01)
    assert (none.hits, none.best_score) == ([], scores[0])


def test_a_code_that_no_file_contains_is_missing(tmp_path, searcher):
    index = indexed(
        tmp_path, searcher, a_txt="The order RX-20931 of the fox.", b_txt="RX-9 and 31-x."
    )
    known = index.search("where is rx-20931?", top=1, weights={"dense": 0.0})
    assert (known.missing, paths(known)) == ((), ["a.txt"])
    unknown = index.search("where is RX-2093?")
    assert unknown.missing == ("rx-2093",)
    assert unknown.hits and not unknown.is_likely
    assert index.search("rx-20931", path="b*").missing == ("rx-20931",)


def test_a_file_is_searched_alone_and_beside_the_index_of_its_folder(tmp_path, searcher):
    whole = indexed(tmp_path, searcher, a_txt="The fox.", b_txt="The fox sleeps.")
    alone = Index(tmp_path / "b.txt", searcher)
    assert alone.update().passages == 1
    assert paths(alone.search("fox")) == ["b.txt"]
    assert whole.update().changed == []
    assert len(whole.search("fox")) == 2


def test_maxsim_is_estimated_from_the_signs_of_token_vectors(notes, with_tokens):
    index = Index(notes, with_tokens)
    index.update()
    answer = index.search("the fox", top=9)
    question = with_tokens.encode_multi_vector("the fox", task="retrieval.query")[0]
    for hit in answer:
        text = {"## De": "Foxes\n"}.get(hit.text[:5], "") + hit.text
        vectors = with_tokens.encode_multi_vector(text, task="retrieval.passage")[0]
        signs = (np.sign(vectors) / np.sqrt(13)).astype(np.float32)
        expected = min(float(maxsim(question, [signs])[0]) * np.sqrt(np.pi / 2), 1)
        assert hit.parts["maxsim"].score == pytest.approx(expected, abs=0.02)
    assert "maxsim" not in index.search("the fox", weights={"dense": 0.0})[0].parts


def test_the_best_sentence_is_the_one_whose_tokens_match_best(tmp_path, with_tokens):
    text = "The lazy dog. The quick brown fox jumps. Snow is white."
    index = indexed(tmp_path, with_tokens, a_md=f"# Title\n\n{text}")
    [hit] = index.search("the quick brown fox jumps", mark=True)
    assert hit.sentence is not None
    assert hit.text[slice(*hit.sentence)] in ("The quick brown fox jumps.", "# Title")
    assert index.search("fox")[0].sentence is None
