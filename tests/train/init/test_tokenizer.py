"""Training of a tokenizer."""

import pytest
from tokenizers import Tokenizer

from polyvec.train.init.tokenizer import train_tokenizer

TEXTS = {
    "en": ["The quick brown fox jumps over the lazy dog.", "A quick dog sleeps, a fox jumps."] * 30,
    "de": ["Der schnelle braune Fuchs springt über den faulen Hund."] * 30,
    "ja": ["素早い茶色の狐がのろまな犬を飛び越える。"] * 30,
}


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A tokenizer of three hundred pieces for three languages, with one requested word."""
    return train_tokenizer(
        TEXTS, vocab_size=315, num_characters=20_000, whole_words=["jumps", "unseen"]
    )


def test_the_vocabulary_has_the_requested_size_and_xlm_robertas_order(trained: Tokenizer) -> None:
    assert trained.get_vocab_size() == 315
    special = [trained.id_to_token(i) for i in (0, 1, 2, 3, 314)]
    assert special == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def test_decoding_restores_the_text_in_lower_case(trained: Tokenizer) -> None:
    encoding = trained.encode("The FOX springt über 犬。")
    assert (encoding.ids[0], encoding.ids[-1]) == (0, 2)
    assert trained.decode(encoding.ids) == "the fox springt über 犬。"


def test_text_without_pieces_is_spelt_in_bytes_and_never_unknown(trained: Tokenizer) -> None:
    encoding = trained.encode("қар 🦊")
    assert 3 not in encoding.ids
    assert trained.decode(encoding.ids) == "қар 🦊"


def test_a_requested_word_is_one_piece_if_it_is_in_the_sample(trained: Tokenizer) -> None:
    assert trained.encode("jumps").tokens == ["<s>", "▁jumps", "</s>"]
    assert "▁unseen" not in trained.get_vocab()


def test_too_few_words_for_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="pieces could be trained"):
        train_tokenizer({"en": ["one two"]}, vocab_size=5_000)
