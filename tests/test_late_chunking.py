"""Late chunking: spans, windows, offsets, on each engine."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from polyvec import Encoder, NotFiniteError, Semantic, Sentences
from polyvec.batch import Batch, make_batch
from polyvec.chunking import split_sentences
from polyvec.late_chunking import (
    cut_by_tokens,
    fill_empty_spans,
    find_token_spans,
    group_sentences,
    join_chunks,
)
from polyvec.model_folder import BUNDLED
from polyvec.pooling import cut_windows, pool_spans, pool_windows
from polyvec.tasks import TASKS
from polyvec.tokenizer import Tokenizer, Tokens
from tests.test_chunking import TEXTS

TASK_NAMES = [task.name for task in TASKS]

SCRIPTS = {
    "english": "Dr. Fox sleeps. In its den, or under the snow!  \n\nAnother one? Yes.",
    "chinese": "敏捷的棕色狐狸跳过懒狗。真的吗？是的！没有空格的句子。",
    "thai": "สุนัขจิ้งจอกสีน้ำตาล กระโดดข้ามสุนัขขี้เกียจ แล้วก็นอน",
    "arabic": "الثعلب البني السريع يقفز. فوق الكلب الكسول؟ نعم.",
    "hindi": "तेज़ भूरी लोमड़ी कूदती है। आलसी कुत्ते के ऊपर। हाँ।",
    "emoji": "a 🦊 sleeps 👩‍👩‍👧 under ❄️❄️❄️ㅤ e\u0301 ﷽ ㍿ \ud800 end",
    "spaces": "  \n\t fox   \u3000 dog \n\n ",
    "empty": "",
}


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    """The bundled model's tokenizer, which spells rare characters in bytes."""
    return Tokenizer.load(BUNDLED, 8192)


def find_spans(tokens: Tokens, text: str, chunks: list[tuple[int, int]]):
    """The tokens of each chunk as the encoder pools them: none is empty."""
    return fill_empty_spans(tokens, find_token_spans(tokens, text, chunks))


def normalised(means: np.ndarray) -> np.ndarray:
    return means / np.linalg.norm(means, axis=1)[:, None]


@pytest.mark.parametrize("task", [*TASK_NAMES, None])
def test_chunks_of_one_window_are_the_means_of_their_tokens(
    encoder: Encoder, sentences: list[str], task: str | None
) -> None:
    text = sentences[0]
    (states,) = encoder.encode_tokens(text, task=task)
    prompt = next((t.prompt for t in TASKS if t.name == task), "")
    (tokens,) = encoder.tokenizer.encode([text], [prompt])
    first, last = tokens.num_prompt, len(tokens.ids) - 1
    found = encoder.encode_chunks(text, task=task, chunks=4)
    edges = [0, *range(first + 4, last, 4), len(tokens.ids)]
    by_hand = [states[start:end].mean(0) for start, end in pairwise(edges)]
    np.testing.assert_allclose(found.vectors, normalised(np.stack(by_hand)), atol=1e-5)


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
@pytest.mark.parametrize("chunks", [1, 3, 1000, Sentences(1), Sentences(2), Semantic(50)])
def test_offsets_slice_the_text_without_gap_and_no_chunk_is_dropped(
    encoder: Encoder, text: str, chunks: int | Sentences | Semantic
) -> None:
    found = encoder.encode_chunks(text, task="separation", chunks=chunks)
    assert "".join(found.texts) == text
    assert len(found) == len(found.vectors) == len(found.texts) >= 1
    assert all(found.texts) or text == ""
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
@pytest.mark.parametrize("prompt", ["", TASKS[1].prompt])
def test_token_spans_of_a_partition_partition_the_tokens(
    bundled: Tokenizer, text: str, prompt: str
) -> None:
    (tokens,) = bundled.encode([text], [prompt])
    assert (np.diff(tokens.offsets[tokens.num_prompt :], axis=0) >= 0).all()
    for size in (1, 2, 5):
        chunks = cut_by_tokens(tokens, size, len(text))
        starts, ends = find_spans(tokens, text, chunks)
        assert starts[0] == 0
        assert ends[-1] == len(tokens.ids)
        if tokens.num_prompt < len(tokens.ids) - 1:
            assert (starts[1:] == ends[:-1]).all()


@pytest.mark.parametrize("text", [*TEXTS.values(), " \n a. b", "\ud800. B\udfff? C", "", "\n\n"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_groups_of_sentences_cover_the_text(text: str, count: int) -> None:
    groups = group_sentences(text, Sentences(count))
    assert len(groups) == -(-len(split_sentences(text)) // count)
    assert "".join(text[start:end] for start, end in groups) == text


def test_joined_chunks_share_out_the_tokens_of_the_document(bundled: Tokenizer) -> None:
    """The space that joins two chunks is part of the second one's first token."""
    chunks = ["The fox sleeps.", "猫が好き。", "🦊 den", "under 雪"]
    text, offsets = join_chunks(chunks)
    assert [text[start:end] for start, end in offsets] == chunks
    for prompt in ("", TASKS[1].prompt):
        (tokens,) = bundled.encode([text], [prompt])
        starts, ends = find_token_spans(tokens, text, offsets)
        assert (starts[0], ends[-1]) == (0, len(tokens.ids))
        assert (ends > starts).all()
        np.testing.assert_array_equal(starts[1:], ends[:-1])


def test_a_chunk_behind_the_truncation_has_no_tokens(bundled: Tokenizer) -> None:
    short = replace(bundled, max_tokens=8)
    text, offsets = join_chunks(["a fox", "sleeps " * 9, "in its den"])
    (tokens,) = short.encode([text], [""])
    starts, ends = find_token_spans(tokens, text, offsets)
    assert tokens.truncated
    assert (ends - starts > 0).tolist() == [True, True, False]
    filled_starts, filled_ends = fill_empty_spans(tokens, (starts, ends))
    assert (filled_ends > filled_starts).all()
    np.testing.assert_array_equal(filled_starts[:2], starts[:2])
    np.testing.assert_array_equal(filled_ends[:2], ends[:2])
    assert (filled_starts[2], filled_ends[2]) == (len(tokens.ids) - 1, len(tokens.ids))


def test_words_have_the_tokens_of_their_characters(bundled: Tokenizer) -> None:
    text = "The fox  sleeps, unbelievably, under 雪."
    (tokens,) = bundled.encode([text], [""])
    words = [(0, 3), (4, 7), (9, 15), (17, 29), (31, 36), (37, 38)]
    for (start, end), left, right in zip(words, *find_spans(tokens, text, words), strict=True):
        covered = tokens.offsets[max(left, 1) : right]
        held = text[covered[0, 0] : covered[-1, 1]]
        assert held.strip() == text[start:end]


def test_a_chunk_inside_a_word_shares_its_token(bundled: Tokenizer) -> None:
    text = "a dog sleeps"
    (tokens,) = bundled.encode([text], [""])
    starts, ends = find_spans(tokens, text, [(2, 3), (3, 5), (5, 6), (6, 6), (12, 12)])
    (dog,) = np.flatnonzero(tokens.offsets[:, 1] == 5)
    assert (starts[:2].tolist(), ends[:2].tolist()) == ([dog, dog], [dog + 1, dog + 1])
    # Without a token of its own, a chunk takes the next one.
    assert starts[2:].tolist() == [dog + 1, dog + 1, len(tokens.ids) - 1]
    assert (ends > starts).all()


def test_the_whole_text_as_one_chunk_has_the_vector_of_encode(
    encoder: Encoder, sentences: list[str]
) -> None:
    for task in (*TASK_NAMES, None):
        for chunks in (1000, [(0, len(sentences[3]))], Sentences(9)):
            (vector,) = encoder.encode_chunks(sentences[3], task=task, chunks=chunks).vectors
            expected = encoder.encode(sentences[3], task=task)[0]
            np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_list_of_chunks_is_the_text_joined_by_spaces(encoder: Encoder) -> None:
    chunks = ["The quick brown fox", "", "jumps over", " ", "the lazy dog."]
    found = encoder.encode_chunks(chunks, task="retrieval.passage")
    assert found.document == " ".join(chunks)
    assert found.texts == chunks
    spans = [(0, 19), (20, 20), (21, 31), (32, 33), (34, 47)]
    same = encoder.encode_chunks(found.document, task="retrieval.passage", chunks=spans)
    np.testing.assert_array_equal(found.offsets, same.offsets)
    np.testing.assert_array_equal(found.vectors, same.vectors)
    # A word read with the space before it, as the tokenizer has it, is the word's alone.
    (states,) = encoder.encode_tokens(found.document, task="retrieval.passage")
    (tokens,) = encoder.tokenizer.encode([found.document], [TASKS[1].prompt])
    inside = (tokens.offsets[:, 1] > 21) & (tokens.offsets[:, 0] < 31)
    mean = states[inside].mean(0)
    np.testing.assert_allclose(found.vectors[2], mean / np.linalg.norm(mean), atol=1e-5)


def test_the_vector_of_a_span_does_not_depend_on_other_spans(
    encoder: Encoder, sentences: list[str]
) -> None:
    text = sentences[0]
    spans = [(10, 19), (0, len(text)), (4, 15), (0, 9), (30, len(text))]
    together = encoder.encode_chunks(text, chunks=spans).vectors
    for span, vector in zip(spans, together, strict=True):
        alone = encoder.encode_chunks(text, chunks=[span]).vectors[0]
        np.testing.assert_allclose(vector, alone, atol=1e-6)


def test_smaller_sizes_are_the_start_of_the_largest(encoder: Encoder, sentences: list[str]) -> None:
    full = encoder.encode_chunks(sentences[0], chunks=5)
    for dim in encoder.config.dims:
        small = encoder.encode_chunks(sentences[0], chunks=5, dim=dim)
        np.testing.assert_allclose(small.vectors, normalised(full.vectors[:, :dim]), atol=1e-6)
        np.testing.assert_array_equal(small.offsets, full.offsets)


def test_naive_chunks_are_embedded_alone(encoder: Encoder, sentences: list[str]) -> None:
    late, naive = (
        encoder.encode_chunks(sentences[2], task="retrieval.passage", chunks=6, late=late)
        for late in (True, False)
    )
    np.testing.assert_array_equal(late.offsets, naive.offsets)
    alone = encoder.encode(naive.texts, task="retrieval.passage")
    np.testing.assert_allclose(naive.vectors, alone, atol=1e-6)
    assert np.abs(late.vectors - naive.vectors).max() > 1e-3


# Documents longer than a window


@pytest.mark.parametrize(("window", "overlap"), [(20, 0), (20, 6), (33, 25), (64, None), (7, 3)])
def test_long_documents_are_pooled_over_their_windows(
    encoder: Encoder, sentences: list[str], window: int, overlap: int | None
) -> None:
    text = " ".join(sentences)
    (tokens,) = encoder.tokenizer.encode([text], [TASKS[1].prompt], truncate=False)
    assert len(tokens.ids) > 64
    size = overlap if overlap is not None else min(256, window // 2)
    # As in the reference: every window but the first drops the tokens of the window before it.
    parts, start = [], 0
    while sum(map(len, parts)) < len(tokens.ids):
        ids = tokens.ids[start : start + window]
        batch_states = hidden(encoder, ids, adapter_id=1)
        parts.append(batch_states[size if start else 0 :])
        start += window - size
    states = np.concatenate(parts)
    found = encoder.encode_chunks(
        text, task="retrieval.passage", chunks=9, window=window, overlap=overlap
    )
    starts, ends = find_spans(tokens, text, [tuple(span) for span in found.offsets.tolist()])
    by_hand = normalised(pool_spans(states, starts, ends))
    np.testing.assert_allclose(found.vectors, by_hand, atol=1e-5)


def hidden(encoder: Encoder, ids: np.ndarray, adapter_id: int) -> np.ndarray:
    return encoder.engine.hidden(make_batch([ids], [adapter_id]))


def test_a_window_as_long_as_the_document_changes_nothing(
    encoder: Encoder, sentences: list[str]
) -> None:
    text = sentences[0]
    once = encoder.encode_chunks(text, chunks=4)
    for window, overlap in ((64, 63), (64, 1000), (60, 0)):
        again = encoder.encode_chunks(text, chunks=4, window=window, overlap=overlap)
        np.testing.assert_array_equal(once.vectors, again.vectors)


@pytest.mark.parametrize("overlap", [0, 1, 5, 9])
@pytest.mark.parametrize("num_tokens", [1, 9, 10, 11, 25, 100])
def test_windows_keep_every_token_once_and_grow_with_the_text(
    num_tokens: int, overlap: int
) -> None:
    found = list(cut_windows(num_tokens, 10, overlap))
    kept = [token for _, end, first in found for token in range(first, end)]
    assert kept == list(range(num_tokens))
    assert all(end - start <= 10 and start <= first for start, end, first in found)
    assert all(first - start >= overlap for start, _, first in found[1:])
    assert len(found) <= 1 + max(0, -(-(num_tokens - 10) // (10 - overlap)))


def test_memory_holds_one_batch_of_a_long_document() -> None:
    largest, calls = 0, 0

    def pool(batch, starts, ends):
        nonlocal largest, calls
        largest, calls = max(largest, len(batch.token_ids)), calls + 1
        return pool_spans(batch.token_ids[:, None].astype(np.float32), starts, ends)

    ids = np.arange(100_000, dtype=np.int32)
    starts = np.arange(0, 100_000, 50, dtype=np.int32)[::-1].copy()
    ends = starts + 70
    ends = ends.clip(max=100_000).astype(np.int32)
    means = pool_windows(pool, ids, -1, starts, ends, window=512, overlap=64, batch_tokens=2048)
    assert largest <= 2048
    assert calls <= 57
    np.testing.assert_allclose(means[:, 0], (starts + ends - 1) / 2, rtol=1e-5)


# Invalid choices


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 0}, "at least 1 token"),
        ({"chunks": [(0, 3), (2, 99)]}, "chunk 1 .* outside the document's 9"),
        ({"chunks": [(3, 1)]}, "chunk 0 "),
        ({"chunks": Sentences(0)}, "at least 1"),
        ({"chunks": Semantic(percentile=101)}, "in 0..100"),
        ({"window": 1}, r"in 2\.\.64"),
        ({"window": 65}, r"in 2\.\.64"),
        ({"window": 4, "overlap": 4}, "below the window"),
        ({"overlap": -1}, "overlap is -1"),
        ({"dim": 9}, "not trained for dim 9"),
        ({"task": "retrieval"}, "unknown task"),
    ],
)
def test_wrong_choices_are_explained(
    encoder: Encoder, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.encode_chunks("fox. dog.", **options)


def test_a_chunk_without_a_usable_vector_is_named(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: Batch, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        means = pool_spans(np.ones((len(batch.token_ids), 32), np.float32), starts, ends)
        means[1] = np.nan
        return means

    monkeypatch.setattr(encoder.engine, "pool", broken)
    with pytest.raises(NotFiniteError, match="chunk 1 ") as caught:
        encoder.encode_chunks("fox. dog. fox.", chunks=Sentences(1))
    assert caught.value.rows == [1]


def test_a_list_of_chunks_is_not_cut_again(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="cut already"):
        encoder.encode_chunks(["a", "b"], chunks=3)


def test_no_chunks_give_no_vectors(encoder: Encoder) -> None:
    assert encoder.encode_chunks("fox", chunks=[], dim=8).vectors.shape == (0, 8)
