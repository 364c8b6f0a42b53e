"""Whole-word masking: word boundaries, statistics and edge cases."""

from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from polyvec.train.masking import (
    MAX_WORD_TOKENS,
    Vocabulary,
    mask_words,
    read_vocabulary,
    word_ids,
)

PIECES = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "▁fox",
    "es",
    "▁run",
    ",",
    "▁den",
    "s",
    "▁",
    "狐",
    "<mask>",
]
S, PAD, END, UNK, FOX, ES, RUN, COMMA, DEN, PLURAL, SPACE, CHINESE, MASK = range(len(PIECES))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer with a dozen pieces."""
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=UNK))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    core.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", S), ("</s>", END)]
    )
    return core


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return read_vocabulary(tokenizer)


def random_texts(count: int, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    words = [[FOX, ES], [FOX], [RUN, COMMA], [DEN, PLURAL], [SPACE, CHINESE, CHINESE]]
    return [
        np.array(
            [S, *(i for w in rng.integers(len(words), size=40) for i in words[w]), END], np.int32
        )
        for _ in range(count)
    ]


def test_a_word_begins_at_a_space_mark_and_ends_before_the_next(vocabulary: Vocabulary) -> None:
    ids = np.array([S, FOX, ES, RUN, COMMA, DEN, PLURAL, END])
    assert word_ids(ids, vocabulary).tolist() == [-1, 0, 0, 1, 1, 2, 2, -1]


def test_tokens_before_the_first_space_mark_form_a_word(
    vocabulary: Vocabulary,
) -> None:
    ids = np.array([S, ES, COMMA, RUN, UNK, PLURAL, END])
    assert word_ids(ids, vocabulary).tolist() == [-1, 0, 0, 1, -1, 2, -1]


def test_a_sentence_without_spaces_is_many_words(vocabulary: Vocabulary) -> None:
    ids = np.array([S, SPACE, *[CHINESE] * 20, END])
    words = word_ids(ids, vocabulary)
    runs = [len(list(run)) for _, run in groupby(words[1:-1])]
    assert runs == [MAX_WORD_TOKENS, MAX_WORD_TOKENS, MAX_WORD_TOKENS, 21 - 3 * MAX_WORD_TOKENS]


def test_the_tokenizers_own_words_are_found(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ids = np.array(tokenizer.encode("foxes run, dens").ids)
    words = word_ids(ids, vocabulary)
    assert [tokenizer.decode(ids[words == w]) for w in range(3)] == [
        "▁foxes",
        "▁run,",
        "▁dens",
    ] or [[PIECES[i] for i in ids[words == w]] for w in range(3)] == [
        ["▁fox", "es"],
        ["▁run", ","],
        ["▁den", "s"],
    ]


def test_whole_words_are_masked_with_the_given_ratio(vocabulary: Vocabulary) -> None:
    texts = random_texts(400)
    shown, places = mask_words(texts, vocabulary, ratio=0.15, seed=[1])
    fates: Counter[str] = Counter()
    for text, seen, hidden in zip(texts, shown, places, strict=True):
        words = word_ids(text, vocabulary)
        chosen = set(words[hidden].tolist())
        # Every token of a chosen word has to be guessed, and nothing else was touched.
        assert set(hidden.tolist()) == {i for i, w in enumerate(words) if w in chosen}
        assert -1 not in chosen
        assert np.array_equal(np.delete(seen, hidden), np.delete(text, hidden))
        assert not vocabulary.special[seen[hidden][seen[hidden] != MASK]].any()
        for i in hidden:
            same, masked = seen[i] == text[i], seen[i] == MASK
            fates["mask" if masked else "same" if same else "random"] += 1
    tokens = sum(len(text) - 2 for text in texts)
    assert fates.total() / tokens == pytest.approx(0.15, abs=0.01)
    assert fates["mask"] / fates.total() == pytest.approx(0.8, abs=0.02)
    # One random piece in eight is the piece that was there.
    assert fates["random"] / fates.total() == pytest.approx(0.1 * 7 / 8, abs=0.02)
    assert fates["same"] / fates.total() == pytest.approx(0.1 + 0.1 / 8, abs=0.02)


def test_the_same_seed_masks_the_same_words(vocabulary: Vocabulary) -> None:
    texts = random_texts(20)
    one, two, other = (
        mask_words(texts, vocabulary, ratio=0.15, seed=[seed, 5])[0] for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_batch_has_a_masked_word(vocabulary: Vocabulary) -> None:
    texts = [np.array([S, END]), np.array([S, FOX, ES, END])]
    for seed in range(20):
        _, places = mask_words(texts, vocabulary, ratio=0.0, seed=[seed])
        assert [hidden.tolist() for hidden in places] == [[], [1, 2]]


def test_texts_without_words_do_not_change(vocabulary: Vocabulary) -> None:
    shown, places = mask_words([np.array([S, END])], vocabulary, ratio=0.5, seed=[0])
    assert shown[0].tolist() == [S, END]
    assert not len(places[0])


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="<mask>"):
        read_vocabulary(Tokenizer(models.Unigram([("▁a", 0.0)])))
