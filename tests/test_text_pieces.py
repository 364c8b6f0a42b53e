"""A long text is cut into pieces whose tokens are those of the whole text."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from polyvec import text_pieces, tokenizer
from polyvec.model_folder import BUNDLED
from polyvec.text_pieces import find_cuts, find_piece_end, measure
from polyvec.texts import find_pair_positions, replace_surrogates
from polyvec.tokenizer import Tokenizer

COLLAPSE = normalizers.Replace(Regex(" {2,}"), " ")
NMT = [normalizers.Nmt(), normalizers.NFKC()]
WORDS = pre_tokenizers.WhitespaceSplit()
SPLITTERS = {
    "words": (normalizers.Sequence(NMT), [WORDS, pre_tokenizers.Metaspace()]),
    "words, first": (
        normalizers.NFKC(),
        [WORDS, pre_tokenizers.Metaspace(prepend_scheme="first")],
    ),
    "no accents": (
        normalizers.Sequence(
            [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
        ),
        [WORDS, pre_tokenizers.Metaspace()],
    ),
    "metaspace": (normalizers.Sequence([*NMT, COLLAPSE]), [pre_tokenizers.Metaspace()]),
    "metaspace, first": (
        normalizers.Sequence([*NMT, COLLAPSE]),
        [pre_tokenizers.Metaspace(prepend_scheme="first")],
    ),
    "metaspace, never": (normalizers.NFKC(), [pre_tokenizers.Metaspace(prepend_scheme="never")]),
    "metaspace alone": (None, [pre_tokenizers.Metaspace()]),
    "strip": (
        normalizers.Sequence([normalizers.Strip(left=False), COLLAPSE]),
        [pre_tokenizers.Metaspace()],
    ),
    "punctuation": (
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(behavior="isolated")],
    ),
    "bert": (normalizers.BertNormalizer(), [pre_tokenizers.BertPreTokenizer()]),
    "digits": (normalizers.NFC(), [pre_tokenizers.Whitespace(), pre_tokenizers.Digits()]),
}

ALPHABET = [
    *"abcdeABC     \n\t.,-_!?12…",
    # White space, what normalisers turn into white space, and what they delete.
    *"\u3000\xa0\u200b\ufeff\u2028\x85\r\0\x01\u2581\ufffd",
    "\r\n",
    # Marks that compose with the letter before them, or with a space; Jamo; halves of a pair.
    *"\u0301\u0308\u1161\u1100\u11a8가\u3099ﾞ\u200d\ud800\udc4d",
    "\ud83d\udc4d",
    # Letters that become several, or that join the character after them.
    *"\ufdfa\ufe70ﬁ½ßΣİ\u037a¨\u2017\u0600\u06dd\u0d4e\U000111c2",
    *[
        "猫",
        "日本語。",
        "हिन्दी ",
        "ไทย ",
        "עברית ",
        "👩\u200d💻",
        "the ",
        "word ",
        "<mask>",
        "</s>",
    ],
]


def make_tokenizer(normalizer, splitters, *, token=None, split=None):
    core = tokenizers.Tokenizer(
        models.Unigram(
            [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0)]
            + [
                (piece, -2.0)
                for piece in ("▁", "▁the", "▁word", "the", "or", "ab", "▁a", "猫", "日本")
            ]
            + [(chr(code), -6.0) for code in range(ord("a"), ord("z") + 1)],
            unk_id=2,
        )
    )
    core.normalizer = normalizer
    core.pre_tokenizer = split or pre_tokenizers.Sequence(splitters)
    core.add_special_tokens(["<s>", "</s>", token or AddedToken("<mask>", lstrip=True)])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return Tokenizer(10**6, BUNDLED, 100, core, find_cuts(core))


def make_text(rng):
    alphabet = rng.sample(ALPHABET, rng.randint(2, len(ALPHABET)))
    text = "".join(rng.choices(alphabet, k=rng.randint(1, 200)))
    return "".join(" " if rng.random() < 0.2 else letter for letter in text)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(text_pieces, "PIECE_CHARACTERS", 24)
    monkeypatch.setattr(text_pieces, "MEASURED_CHARACTERS", 4)
    monkeypatch.setattr(tokenizer, "STEP_CHARACTERS", 100)


def check_equal(served, text, prompt):
    """Compare with the library's tokens of the whole text, with and without truncation."""
    [expected] = served.core.encode_batch([replace_surrogates(prompt + text)])
    positions = find_pair_positions(prompt + text)
    [tokens] = served.encode([text], [prompt])
    assert tokens.ids.tolist() == expected.ids, ascii(text)
    ends = np.array(expected.offsets[1:-1], np.int32).reshape(-1, 2)
    ends = ends if positions is None else positions[ends]
    own = (ends - len(prompt)).clip(0)
    own[: tokens.num_prompt - 1] = 0
    assert tokens.offsets[1:-1].tolist() == own.tolist(), ascii(text)
    for limit in (2, 9, 30):
        [short] = replace(served, max_tokens=limit).encode([text], [prompt])
        assert short.truncated == (len(expected.ids) > limit)
        kept = len(short.ids) - 1
        assert short.ids.tolist() == [*expected.ids[:kept], expected.ids[-1]]
        assert kept == min(limit, len(expected.ids)) - 1
    if not prompt:
        assert served.count(text) == len(expected.ids)


@pytest.mark.parametrize("name", SPLITTERS)
def test_pieces_have_the_tokens_of_the_whole(small_pieces, name):
    """For every kind of tokenizer that is cut, on the worst of white space and of marks."""
    rng = random.Random(name)
    served = make_tokenizer(*SPLITTERS[name])
    assert served.cuts
    num_pieces = 0
    for _ in range(40):
        text = make_text(rng)
        check_equal(served, text, rng.choice(["", "Represent the query: "]))
        num_pieces += find_piece_end(text, 0, served.cuts) < len(text)
    assert num_pieces > 10


def test_the_bundled_tokenizer_is_cut(small_pieces):
    rng = random.Random(5)
    served = Tokenizer.load(BUNDLED, 10**6)
    for _ in range(40):
        check_equal(served, make_text(rng), "")


@pytest.mark.parametrize(
    "served",
    [
        make_tokenizer(normalizers.NFKC(), [], split=pre_tokenizers.Split("a", "isolated")),
        make_tokenizer(normalizers.NFKC(), [], split=pre_tokenizers.Metaspace(split=False)),
        make_tokenizer(normalizers.Prepend("x"), [pre_tokenizers.Metaspace()]),
        make_tokenizer(normalizers.Replace(Regex("a b"), "c"), [pre_tokenizers.Metaspace()]),
        make_tokenizer(normalizers.Strip(left=True), [pre_tokenizers.Metaspace()]),
        make_tokenizer(None, [WORDS], token=AddedToken("<mask>", rstrip=True)),
        make_tokenizer(None, [WORDS], token=AddedToken("two words")),
    ],
)
def test_other_tokenizers_read_a_text_whole(small_pieces, served):
    """What looks beyond a word is not cut, up to the longest word."""
    assert served.cuts == ""
    rng = random.Random(2)
    for _ in range(50):
        text = make_text(rng)
        assert find_piece_end(text, 0, served.cuts) == len(text)


def test_a_long_word_is_cut_and_a_mark_stays_with_its_letter(monkeypatch):
    monkeypatch.setattr(text_pieces, "PIECE_CHARACTERS", 10)
    monkeypatch.setattr(text_pieces, "MAX_WORD_CHARACTERS", 40)
    monkeypatch.setattr(text_pieces, "MEASURED_CHARACTERS", 1)
    for text in ("x" * 100, "e\u0301" * 100, "\ufdfa" * 20, " " * 100, "\u0301" * 100):
        ends = [0]
        while ends[-1] < len(text):
            ends.append(find_piece_end(text, ends[-1], " "))
        assert all(b - a > 0 and measure(text[a : b - 1]) <= 40 for a, b in pairwise(ends))
        assert text[0] != "e" or all(text[end] != "\u0301" for end in ends[1:-1])


def test_only_what_the_model_reads_is_tokenised(small_pieces, monkeypatch):
    """The cost of a truncated text is that of its first tokens."""
    served = replace(make_tokenizer(*SPLITTERS["words"]), max_tokens=50)
    sent = []
    encode = Tokenizer._encode_pieces

    def watch(self, pieces):
        sent.extend(pieces)
        return encode(self, pieces)

    monkeypatch.setattr(Tokenizer, "_encode_pieces", watch)
    [tokens] = served.encode(["the word " * 100_000], [""])
    assert tokens.truncated and sum(map(len, sent)) < 1_000


def test_a_step_is_bounded_and_all_texts_arrive(small_pieces):
    served = make_tokenizer(*SPLITTERS["words"])
    texts = ["a", "the word " * 90, "", "猫 " * 40, "\ufdfa" * 30, "b " * 200]
    steps = list(served.encode_steps(texts, [""] * len(texts)))
    tokens = dict(found for step in steps for found in step)
    assert sorted(tokens) == list(range(len(texts))) and len(steps) > 10
    for number, text in enumerate(texts):
        assert tokens[number].ids.tolist() == served.core.encode_batch([text])[0].ids
