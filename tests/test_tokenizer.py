"""The tokenizer, with a tiny vocabulary, byte fallback and XLM-RoBERTa's special tokens."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from polyvec.tokenizer import Tokenizer, Tokens

PROMPT = "Represent the query: "
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = [
    "▁",
    "▁the",
    "▁query",
    "▁represent",
    ":",
    "▁hello",
    "▁world",
    "ing",
    "fi",
    "▁猫",
    "猫",
    "が",
]
STRANGE = {
    "empty": "",
    "a space": " ",
    "spaces": " \n\t  ",
    "NUL": "a\0b",
    "byte order mark": "\ufeffhello",
    "lone surrogates": "hello \ud800 world\udfff",
    "right to left": "שלום \u202eabc",
    "combining": "e\u0301\u0301\u0301 \u0301",
    "ligatures": "ﬁre ½ Å",
    "emoji": "👩\u200d💻 hello",
    "noncharacter": "\uffff\U0010ffff",
    "special": "hello</s><s>world<pad>",
}


def build_core() -> tokenizers.Tokenizer:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = [(piece, 0.0) for piece in SPECIAL]
    vocab += [(piece, -2.0 - n / 10) for n, piece in enumerate(PIECES)]
    vocab += [(letter, -8.0) for letter in letters]
    vocab += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    core = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    core.add_special_tokens(SPECIAL)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return core


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_core().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder, 1_000)


def encode(tokenizer: Tokenizer, text: str, prompt: str = "") -> Tokens:
    return tokenizer.encode([text], [prompt])[0]


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_any_string_has_tokens_that_lie_in_it(tokenizer: Tokenizer, text: str, prompt: str):
    tokens = encode(tokenizer, text, prompt)
    assert tokens.ids[0] == 0 and tokens.ids[-1] == 2
    assert tokens.offsets.shape == (len(tokens.ids), 2)
    assert (tokens.offsets >= 0).all() and (tokens.offsets <= len(text)).all()
    assert (tokens.offsets[:, 0] <= tokens.offsets[:, 1]).all()
    assert not tokens.offsets[: tokens.num_prompt].any()
    assert (tokens.offsets[-1] == tokens.offsets[-2, 1]).all()
    assert not tokens.truncated


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_ids_are_those_of_prompt_and_text_as_one_string(
    tokenizer: Tokenizer, text: str, prompt: str
):
    whole = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in prompt + text)
    assert encode(tokenizer, text, prompt).ids.tolist() == build_core().encode(whole).ids


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_spans_cover_every_character_that_has_a_token(tokenizer: Tokenizer, text: str, prompt: str):
    tokens = encode(tokenizer, text, prompt)
    covered = {i for start, end in tokens.offsets.tolist() for i in range(start, end)}
    missing = {text[i] for i in range(len(text)) if i not in covered}
    # Spaces may be dropped, and marks may melt into the letter before them.
    assert not {c for c in missing if not c.isspace() and c != "\u0301"}


def test_offsets_count_characters_of_the_text_behind_the_prompt(tokenizer: Tokenizer):
    text = "Hello 猫が fire"
    tokens = encode(tokenizer, text, PROMPT)
    spans = [text[start:end].strip() for start, end in tokens.offsets[tokens.num_prompt : -1]]
    assert spans == ["Hello", "猫", "が", "", "fi", "r", "e"]
    pieces = [tokenizer.core.id_to_token(i) for i in tokens.ids[: tokens.num_prompt].tolist()]
    assert pieces == ["<s>", "▁represent", "▁the", "▁query", ":"]
    assert encode(tokenizer, text).num_prompt == 1


def test_an_empty_text_has_no_tokens_of_its_own(tokenizer: Tokenizer):
    assert encode(tokenizer, "").ids.tolist() == [0, 2]
    tokens = encode(tokenizer, "", PROMPT)
    assert tokens.num_prompt == len(tokens.ids) - 1
    assert not tokens.offsets.any()


def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer: Tokenizer):
    broken, mended = encode(tokenizer, "a\udc80b"), encode(tokenizer, "a\ufffdb")
    np.testing.assert_array_equal(broken.ids, mended.ids)
    np.testing.assert_array_equal(broken.offsets, mended.offsets)
    # A pair is a character.
    np.testing.assert_array_equal(
        encode(tokenizer, "\ud83d\ude00").ids, encode(tokenizer, "\U0001f600").ids
    )
    assert tokenizer.count("a\udc80b") == len(mended.ids)


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("filler", ["", "hello ", "é"])
def test_halves_of_a_character_are_joined(tokenizer: Tokenizer, prompt: str, filler: str):
    text = filler * 9_000 + "a\U0001f44db 猫"
    halves = filler * 9_000 + "a\ud83d\udc4db 猫"
    [whole], [joined] = (
        tokenizer.encode([each], [prompt], truncate=False) for each in (text, halves)
    )
    assert joined.ids.tolist() == whole.ids.tolist()
    assert tokenizer.count(halves) == tokenizer.count(text)
    # Offsets are those of the caller's text, in which the character is one longer.
    thumb = text.index("\U0001f44d")
    moved = whole.offsets + (whole.offsets > thumb)
    np.testing.assert_array_equal(joined.offsets, moved)


def test_a_piece_ends_between_characters_and_not_inside_of_one(tokenizer: Tokenizer):
    for before in range(3):
        text = "a" * before + "\U0001f44d" * 70_000
        halves = "a" * before + "\ud83d\udc4d" * 70_000
        for found in (tokenizer.count(halves), len(tokenizer.encode([halves], [""])[0].ids)):
            assert found > 0
        [tokens] = tokenizer.encode([halves], [""], truncate=False)
        unknown = tokenizer.encode(["\ufffd"], [""])[0].ids[1:-1].tolist()
        assert not set(unknown[-3:]) <= set(tokens.ids.tolist()), "a half was left alone"
        assert tokens.offsets[-1, 1] == len(halves) and len(text) < len(halves)


def test_few_threads_give_the_same_tokens(folder: Path):
    texts = ["hello world " * n for n in (1, 50, 700, 3)]
    free, bound = (Tokenizer.load(folder, 10**6, num_threads=n) for n in (None, 2))
    for one, other in zip(free.encode(texts, [""] * 4), bound.encode(texts, [""] * 4), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.offsets, other.offsets)


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("max_tokens", [2, 3, 7, 12])
def test_truncation_keeps_exactly_max_tokens_and_the_end(
    folder: Path, max_tokens: int, prompt: str
):
    tokenizer = Tokenizer.load(folder, max_tokens)
    for num_words in range(16):
        text = "hello " * num_words
        whole = build_core().encode(prompt + text).ids
        tokens = encode(tokenizer, text, prompt)
        assert tokens.truncated == (len(whole) > max_tokens)
        if tokens.truncated:
            assert tokens.ids.tolist() == [*whole[: max_tokens - 1], 2]
        else:
            assert tokens.ids.tolist() == whole
        assert len(tokens.offsets) == len(tokens.ids)
        assert tokens.num_prompt < max_tokens
        # The span of </s> is where reading stopped.
        assert tokens.offsets[-1, 0] == tokens.offsets[:, 1].max()


def test_truncation_and_padding_stored_in_the_file_are_ignored(folder: Path):
    core = build_core()
    core.enable_truncation(4)
    core.enable_padding(length=50, pad_id=1)
    core.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder, 100)
    assert len(encode(tokenizer, "hello " * 20).ids) == len(build_core().encode("hello " * 20).ids)


def test_a_batch_gives_the_tokens_of_its_texts_alone(tokenizer: Tokenizer):
    texts = list(STRANGE.values()) * 3
    prompts = [PROMPT if i % 2 else "" for i in range(len(texts))]
    for text, prompt, tokens in zip(texts, prompts, tokenizer.encode(texts, prompts), strict=True):
        alone = encode(tokenizer, text, prompt)
        np.testing.assert_array_equal(tokens.ids, alone.ids)
        np.testing.assert_array_equal(tokens.offsets, alone.offsets)
        assert (tokens.num_prompt, tokens.truncated) == (alone.num_prompt, alone.truncated)
    assert tokenizer.encode([], []) == []


def test_counting_is_encoding_without_truncation(folder: Path):
    tokenizer = Tokenizer.load(folder, 5)
    assert tokenizer.count("") == 2
    assert tokenizer.count("hello " * 50) == len(build_core().encode("hello " * 50).ids)


@pytest.mark.parametrize("word", ["a", "ab", "猫", "!", "\u0301", "😀", "ing"])
def test_a_word_of_100_000_characters_takes_linear_time(tokenizer: Tokenizer, word: str):
    def seconds(length: int) -> float:
        start = time.perf_counter()
        tokens = encode(tokenizer, word * (length // len(word)))
        assert len(tokens.ids) == 1_000 and tokens.truncated
        return time.perf_counter() - start

    # Ten times the length may take a hundred times as long only if it is quadratic.
    assert seconds(100_000) < 40 * max(seconds(10_000), 0.01)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{}", id="no model"),
        pytest.param(b"[1, 2", id="no object"),
        pytest.param(b"\xff\xfe\0", id="bytes"),
        pytest.param(b"[" * 100_000, id="nested"),
        pytest.param(b'{"version": "1.0", "model": {"type": "Pickle"}}', id="other model"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path, 100)


def test_a_file_cut_anywhere_is_refused(folder: Path):
    path = folder / "tokenizer.json"
    raw = path.read_bytes()
    for length in range(0, len(raw) - 2, 501):
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match="is damaged"):
            Tokenizer.load(folder, 100)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="is missing"):
        Tokenizer.load(tmp_path, 100)
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(ValueError, match="more than"):
        Tokenizer.load(tmp_path, 100)


def test_a_tokenizer_without_its_special_tokens_is_refused(folder: Path):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    with pytest.raises(ValueError, match="<s> before a text"):
        Tokenizer.load(folder, 100)


def test_there_must_be_room_for_the_special_tokens(folder: Path):
    with pytest.raises(ValueError, match="leave room"):
        Tokenizer.load(folder, 1)


def test_the_vocabulary_s_size_is_known(tokenizer: Tokenizer):
    assert tokenizer.vocab_size == len(SPECIAL) + len(PIECES) + 26 + 256


@pytest.mark.parametrize("model", [models.WordLevel, models.Unigram])
def test_the_vocabulary_s_size_counts_numbers_that_are_skipped(model: type, tmp_path: Path):
    if model is models.WordLevel:
        core = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 2, "fox": 9}, "fox"))
    else:
        core = tokenizers.Tokenizer(models.Unigram([("<s>", 0.0), ("fox", -1.0)], unk_id=1))
        core.add_special_tokens(["</s>"])
    ends = [(name, core.token_to_id(name)) for name in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    core.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path, 100).vocab_size == (10 if model is models.WordLevel else 3)


def test_transformers_reads_the_files_to_the_same_ids(tokenizer: Tokenizer, tmp_path: Path):
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 1_000
    assert theirs.pad_token_id == 1
    assert len(theirs) == tokenizer.vocab_size
    for text in STRANGE.values():
        if not any("\ud800" <= c <= "\udfff" for c in text):
            assert theirs(text)["input_ids"] == encode(tokenizer, text).ids.tolist()
