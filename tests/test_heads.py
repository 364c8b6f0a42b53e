"""The sparse and the multi-vector head: layers, outputs on each engine, and scores."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from sentence_transformers import SentenceTransformer

from polyvec import Encoder, ModelConfig, NotFiniteError, Sparse, heads, maxsim
from polyvec.checkpoint import Weights, load_checkpoint, save_checkpoint, save_compact
from polyvec.heads import gather_weights
from polyvec.network import Network
from polyvec.network import maxsim as torch_maxsim
from polyvec.tasks import TASKS
from polyvec.tokenizer import Tokenizer
from tests.conftest import MakeEngine

TASK_NAMES = [task.name for task in TASKS]


@pytest.fixture(scope="session")
def model(
    headed_config: ModelConfig,
    headed_weights: Weights,
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder in the native layout."""
    folder = tmp_path_factory.mktemp("models") / "heads"
    save_checkpoint(folder, headed_config, headed_weights)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def encoder(
    headed_config: ModelConfig, headed_weights: Weights, model: Path, make_engine: MakeEngine
) -> Encoder:
    """The tiny model with heads on each engine in turn."""
    chosen = {
        n: np.asarray(w)
        for n, w in headed_weights.items()
        if n.startswith(("sparse.", "multi_vector."))
    }
    tokenizer = Tokenizer.load(model, headed_config.max_tokens)
    return Encoder(headed_config, tokenizer, make_engine(headed_config, headed_weights), chosen)


@pytest.fixture
def texts(sentences: list[str]) -> list[str]:
    """Repeated words, an empty text, a truncated one, and one that spells special tokens."""
    odd = ["", "fox fox fox", "the " * 80, "</s> fox <unk> \u0e01 <s>", " "]
    return [text for pair in zip(sentences, odd, strict=False) for text in pair]


# The layers


def test_numpy_and_torch_heads_are_the_same(
    headed_config: ModelConfig, headed_weights: Weights, rng: np.random.Generator
) -> None:
    network = Network(headed_config)
    network.load_state_dict({name: torch.tensor(weight) for name, weight in headed_weights.items()})
    hidden = rng.normal(size=(50, 32)).astype(np.float32)
    pair = [np.asarray(headed_weights[f"sparse.{part}"]) for part in ("weight", "bias")]
    ours = heads.token_weights(hidden, *pair)
    with torch.no_grad():
        theirs = network.token_weights(torch.from_numpy(hidden))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
    assert (ours == 0).any() and (ours > 0).any()
    pair = [np.asarray(headed_weights[f"multi_vector.{part}"]) for part in ("weight", "bias")]
    ours = heads.token_vectors(hidden, *pair)
    with torch.no_grad():
        theirs = network.token_vectors(torch.from_numpy(hidden))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_a_network_without_heads_has_no_weights_for_them(tiny_config: ModelConfig) -> None:
    assert not [
        n for n in Network(tiny_config).state_dict() if n.startswith(("sparse", "multi_vector"))
    ]


# Outputs


@pytest.mark.parametrize("task", [*TASK_NAMES, None])
def test_sparse_weights_are_those_of_the_text_s_own_tokens(
    encoder: Encoder, headed_weights: Weights, texts: list[str], task: str | None
) -> None:
    found = encoder.encode_sparse(texts, task=task)
    prompt = next((t.prompt for t in TASKS if t.name == task), "")
    tokens = encoder.tokenizer.encode(texts, [prompt] * len(texts))
    states = encoder.encode_tokens(texts, task=task)
    head = [np.asarray(headed_weights[f"sparse.{part}"]) for part in ("weight", "bias")]
    for number, (text, hidden) in enumerate(zip(tokens, states, strict=True)):
        expected: dict[int, float] = {}
        for position in range(text.num_prompt, len(text.ids) - 1):
            token = int(text.ids[position])
            weight = max(0.0, float(hidden[position] @ head[0][0] + head[1][0]))
            # <s>, <pad>, </s>, <unk>
            if token > 3 and weight > expected.get(token, 0):
                expected[token] = weight
        ids, values = found.row(number)
        assert ids.tolist() == sorted(expected)
        np.testing.assert_allclose(values, [expected[i] for i in ids.tolist()], atol=1e-5)
    assert found.row(texts.index(""))[0].tolist() == []
    assert len(found.data)
    # What the loop must have met: a text cut off, and special tokens spelt out in a text.
    assert any(text.truncated for text in tokens)
    assert any({0, 2, 3} <= set(text.ids[text.num_prompt : -1].tolist()) for text in tokens)


@pytest.mark.parametrize("task", [*TASK_NAMES, None])
def test_token_vectors_are_those_of_the_text_s_own_tokens_and_its_end(
    encoder: Encoder, headed_weights: Weights, texts: list[str], task: str | None
) -> None:
    found = encoder.encode_multi_vector(texts, task=task)
    prompt = next((t.prompt for t in TASKS if t.name == task), "")
    tokens = encoder.tokenizer.encode(texts, [prompt] * len(texts))
    states = encoder.encode_tokens(texts, task=task)
    head = [np.asarray(headed_weights[f"multi_vector.{part}"]) for part in ("weight", "bias")]
    for text, hidden, vectors in zip(tokens, states, found, strict=True):
        expected = hidden[text.num_prompt :] @ head[0].T + head[1]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert len(found[texts.index("")]) == 1


def test_one_pass_gives_the_results_of_three_bit_for_bit(
    encoder: Encoder, texts: list[str]
) -> None:
    tasks = ([*TASK_NAMES, None] * 2)[: len(texts)]
    found = encoder.encode_all(texts, task=tasks, dim=16)
    assert found.dense is not None and found.sparse is not None and found.multi_vector is not None
    np.testing.assert_array_equal(found.dense, encoder.encode(texts, task=tasks, dim=16))
    sparse = encoder.encode_sparse(texts, task=tasks)
    for field in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(found.sparse, field), getattr(sparse, field))
    for ours, alone in zip(
        found.multi_vector, encoder.encode_multi_vector(texts, task=tasks), strict=True
    ):
        np.testing.assert_array_equal(ours, alone)


def test_encode_all_runs_every_text_once(
    encoder: Encoder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_forward" if hasattr(encoder.engine, "_forward") else "_run"
    forward, count = getattr(encoder.engine, name), 0

    def counted(batch):
        nonlocal count
        count += len(batch.token_ids)
        return forward(batch)

    monkeypatch.setattr(encoder.engine, name, counted)
    encoder.encode_all(texts)
    assert count == sum(len(t.ids) for t in encoder.tokenizer.encode(texts, [""] * len(texts)))


def test_mixed_tasks_in_any_batch_give_the_outputs_of_each_text_alone(
    encoder: Encoder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ([*TASK_NAMES, None] * 2)[: len(texts)]
    monkeypatch.setattr("polyvec.texts.MAX_BLOCK_TEXTS", 4)
    monkeypatch.setattr(encoder.engine, "batch_tokens", 70)
    found = encoder.encode_all(texts, task=tasks, outputs=["sparse", "multi_vector"])
    assert found.dense is None and found.sparse is not None and found.multi_vector is not None
    for number, (text, task) in enumerate(zip(texts, tasks, strict=True)):
        alone = encoder.encode_all(text, task=task)
        assert alone.sparse is not None and alone.multi_vector is not None
        ids, values = found.sparse.row(number)
        assert ids.tolist() == alone.sparse.indices.tolist()
        np.testing.assert_allclose(values, alone.sparse.data, atol=1e-5)
        np.testing.assert_allclose(found.multi_vector[number], alone.multi_vector[0], atol=1e-5)


def test_no_texts_give_no_outputs(encoder: Encoder) -> None:
    found = encoder.encode_all([])
    assert found.dense is not None and found.sparse is not None
    assert found.dense.shape == (0, 32)
    assert found.sparse.shape == (0, encoder.config.vocab_size)
    assert found.sparse.indptr.tolist() == [0]
    assert found.multi_vector == []


def test_an_output_without_its_head_is_refused(tiny_model: Path) -> None:
    plain = Encoder.load(tiny_model, device="cpu")
    with pytest.raises(ValueError, match="has no sparse head"):
        plain.encode_sparse("fox")
    with pytest.raises(ValueError, match="has no multi-vector head"):
        plain.encode_multi_vector("fox")
    with pytest.raises(ValueError, match="has no sparse head"):
        plain.encode_all("fox")
    found = plain.encode_all("fox", outputs=["dense"])
    assert found.dense is not None
    np.testing.assert_array_equal(found.dense, plain.encode("fox"))
    with pytest.raises(
        ValueError, match="'colbert'; each must be 'dense', 'sparse' or 'multi_vector'"
    ):
        plain.encode_all("fox", outputs=["colbert"])


def test_a_nan_is_an_error_that_names_its_texts(
    encoder: Encoder, headed_config: ModelConfig, headed_weights: Weights, make_engine: MakeEngine
) -> None:
    poisoned = {name: np.array(weight) for name, weight in headed_weights.items()}
    token = encoder.tokenizer.encode(["敏"], [""])[0].ids[1]
    poisoned["embeddings.word.weight"][token] = np.nan
    broken = Encoder(
        headed_config, encoder.tokenizer, make_engine(headed_config, poisoned), encoder.heads
    )
    for method in (broken.encode_sparse, broken.encode_multi_vector, broken.encode_all):
        with pytest.raises(NotFiniteError) as error:
            method(["fox", "敏", "dog", "敏捷"])
        assert error.value.rows == [1, 3]


@pytest.mark.parametrize("compact", [False, True])
def test_heads_are_saved_and_loaded(
    model: Path,
    headed_config: ModelConfig,
    headed_weights: Weights,
    sentences: list[str],
    compact: bool,
    tmp_path: Path,
) -> None:
    folder = model
    if compact:
        folder = tmp_path / "compact"
        save_compact(folder, headed_config, headed_weights)
        (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    assert load_checkpoint(folder)[0] == headed_config
    loaded = Encoder.load(folder, device="cpu")
    found = loaded.encode_all(sentences)
    assert found.sparse is not None and found.multi_vector is not None
    assert len(found.sparse.indices)
    expected = (
        loaded.encode_tokens(sentences)[0][1:] @ np.asarray(headed_weights["multi_vector.weight"]).T
    )
    expected += np.asarray(headed_weights["multi_vector.bias"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.multi_vector[0], expected, atol=0.02 if compact else 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_sentence_transformers_reads_the_folder(
    model: Path, sentences: list[str], tmp_path: Path
) -> None:
    config, weights = load_checkpoint(model)
    save_checkpoint(tmp_path / "m", config, weights, files=Tokenizer.load(model, 64).files())
    vectors = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(sentences)
    ours = Encoder.load(model, device="cpu", precision="float32").encode(sentences)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, ours, atol=1e-5)


# Scores


def random_sparse(rng: np.random.Generator, count: int, vocab_size: int = 40) -> Sparse:
    ids = [rng.integers(0, vocab_size, rng.integers(0, 9)).astype(np.int32) for _ in range(count)]
    weights = [rng.random(len(text)).astype(np.float32) for text in ids]
    return gather_weights(ids, weights, ignored=[1], vocab_size=vocab_size)


@pytest.mark.parametrize(("left", "right"), [(3, 20), (20, 3), (1, 1), (0, 4), (4, 0)])
def test_sparse_products_equal_a_double_loop_and_scipy(
    rng: np.random.Generator, left: int, right: int
) -> None:
    one, two = random_sparse(rng, left), random_sparse(rng, right)
    found = one.dot(two)
    assert found.shape == (left, right)
    for i in range(left):
        mine = dict(zip(*(column.tolist() for column in one.row(i)), strict=True))
        for j in range(right):
            yours = dict(zip(*(column.tolist() for column in two.row(j)), strict=True))
            expected = sum(mine[token] * yours[token] for token in mine.keys() & yours.keys())
            assert found[i, j] == pytest.approx(expected, rel=1e-5)
    a, b = (scipy.sparse.csr_array((s.data, s.indices, s.indptr), s.shape) for s in (one, two))
    np.testing.assert_allclose((a @ b.T).toarray(), found, rtol=1e-5)
    assert a.has_canonical_format


@pytest.mark.parametrize(
    "chosen", [slice(2, 5), slice(None), slice(4, 4), slice(5, 2), slice(-2, None)]
)
def test_a_slice_has_the_weights_of_its_texts(rng: np.random.Generator, chosen: slice) -> None:
    whole = random_sparse(rng, 6)
    part = whole[chosen]
    texts = range(6)[chosen]
    assert part.shape == (len(texts), 40)
    for number, text in enumerate(texts):
        for ours, theirs in zip(part.row(number), whole.row(text), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="step is 2"):
        whole[::2]


def test_weights_of_two_vocabularies_cannot_be_compared(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="vocabularies have 40 and 41 pieces"):
        random_sparse(rng, 2).dot(random_sparse(rng, 2, 41))


def test_pieces_are_sorted_by_weight(encoder: Encoder) -> None:
    found = encoder.encode_sparse(["The quick brown fox", ""])
    first, empty = found.to_dicts(encoder.tokenizer)
    assert empty == {}
    assert list(first.values()) == sorted(found.row(0)[1].tolist(), reverse=True)
    assert {encoder.tokenizer.core.token_to_id(piece) for piece in first} == set(
        found.row(0)[0].tolist()
    )


def units(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, 5)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("budget", [1, 30, 2**22])
def test_maxsim_equals_a_double_loop_under_any_budget(
    rng: np.random.Generator, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MAX_SCORE_PAIRS", budget)
    query, lengths = units(rng, 7), [3, 1, 8, 2, 30]
    candidates = [units(rng, length) for length in lengths]
    expected = []
    for candidate in candidates:
        best = [max(float(a @ b) for b in candidate) for a in query]
        expected.append(sum(best) / len(best))
    np.testing.assert_allclose(maxsim(query, candidates), expected, atol=1e-6)
    assert len(maxsim(query, [])) == 0
    queries = torch.from_numpy(np.concatenate([query, query[:2]]))
    found = torch_maxsim(
        queries,
        torch.tensor([7, 2]),
        torch.from_numpy(np.concatenate(candidates)),
        torch.tensor(lengths),
    )
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found[1].numpy(), maxsim(query[:2], candidates), atol=1e-6)


def test_padding_never_wins(rng: np.random.Generator) -> None:
    # Against these every true similarity is negative, so that a padded zero would be the best.
    query = np.abs(units(rng, 4))
    candidates = [-np.abs(units(rng, length)) for length in (1, 6, 2)]
    scores = maxsim(query, candidates)
    assert (scores < 0).all()
    alone = [maxsim(query, [candidate])[0] for candidate in candidates]
    np.testing.assert_allclose(scores, alone, atol=1e-6)
    packed = torch.from_numpy(np.concatenate(candidates))
    found = torch_maxsim(
        torch.from_numpy(query), torch.tensor([4]), packed, torch.tensor([1, 6, 2])
    )
    np.testing.assert_allclose(found[0].numpy(), scores, atol=1e-6)


def test_texts_without_vectors_have_no_maxsim(rng: np.random.Generator) -> None:
    none = np.empty((0, 5), np.float32)
    for query, candidates in ((none, [units(rng, 2)]), (units(rng, 2), [units(rng, 2), none])):
        with pytest.raises(ValueError, match="at least one token"):
            maxsim(query, candidates)


def test_maxsim_refuses_vectors_of_other_sizes_axes_and_nan(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    good, bad = np.ones((2, 4), np.float32), np.full((1, 4), np.nan, np.float32)
    for query, candidates, message in [
        (good[0], [good], "one row per vector"),
        (good, [good, good[0]], "one row per vector"),
        (good, [good[:, :3]], "different models"),
        (bad, [good], "NaN"),
        (good, [good, bad], "candidate 1 .*NaN"),
        (good, {"a": good}, "candidates is a dict"),
    ]:
        with pytest.raises(ValueError, match=message):
            maxsim(query, candidates)
    assert maxsim(good, iter([good, good])).shape == (2,)
