"""Scores equal independent computations; runs resume; the report says what the files say."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jaxtyping import Float32
from mteb.languages import check_language_code
from scipy.stats import spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, v_measure_score

from polyvec import Encoder
from polyvec.cli import eval as verbs
from polyvec.cli.eval import EvalOptions
from polyvec.eval import (
    MtebEncoder,
    Score,
    Summary,
    TaskScore,
    evaluate,
    local_tasks,
    read_summaries,
    render_report,
)
from polyvec.eval.baselines import BASELINES, model_meta
from polyvec.eval.chunk_search import ChunkSearch, Cut
from polyvec.eval.intervals import (
    difference,
    interval,
    match_scores,
    mean_draws,
    query_scores,
    spearman_draws,
)
from polyvec.eval.models import at_base, remembered, truncated, without_instructions
from polyvec.eval.quantised import CANDIDATES, as_binary, as_int8, rescore
from polyvec.eval.results import write_summary
from polyvec.eval.task_folders import KINDS, TRAIN_TEXTS, language_script
from polyvec.terminal import ExitStatus

WORDS = [
    "ant",
    "bee",
    "cat",
    "dog",
    "elk",
    "fox",
    "gnu",
    "hen",
    "ibis",
    "jay",
    "kiwi",
    "lynx",
    "mole",
    "newt",
    "owl",
    "pig",
]


def embed(texts: list[str], adapter: str | None = None) -> Float32[np.ndarray, "B D"]:
    """The sum of a text's words, each a random vector, at length 1."""
    vectors = {word: np.random.default_rng(i).normal(size=12) for i, word in enumerate(WORDS)}
    sums = np.array([sum(vectors[word] for word in text.split()) for text in texts], np.float32)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def mteb_encoder(function: Callable = embed) -> MtebEncoder:
    return MtebEncoder(function, model_meta("tiny", "1"))


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=5)) for _ in range(count)]


def folder(root: Path, kind: str, **tables: list[dict]) -> Path:
    """A task folder as `local_tasks` reads them, named after its type."""
    path = root / "eval" / kind
    path.mkdir(parents=True, exist_ok=True)
    meta = {"name": kind, "type": kind, "languages": ["en", "de"], "metric": ""}
    (path / "meta.json").write_text(json.dumps(meta))
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet")
    return root


def sts(root: Path) -> Path:
    a, b, noise = random_texts(40, 1), random_texts(40, 2), random.Random(3)
    rows = [
        {"text1": x, "text2": y, "score": noise.random() * 5, "lang": "en" if i < 20 else "de"}
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    return folder(root, "sts", pairs=rows)


def retrieval(root: Path) -> Path:
    corpus = [{"id": f"d{i}", "text": t, "title": ""} for i, t in enumerate(random_texts(30, 1))]
    queries = [{"id": f"q{i}", "text": t, "lang": "en"} for i, t in enumerate(random_texts(9, 2))]
    rng = random.Random(4)
    qrels = [
        {"query_id": query["id"], "corpus_id": document["id"], "score": 1}
        for query in queries
        for document in rng.sample(corpus, 3)
    ]
    return folder(root, "retrieval", corpus=corpus, queries=queries, qrels=qrels)


def cosines(a: list[str], b: list[str]) -> Float32[np.ndarray, "B C"]:
    return embed(a) @ embed(b).T


def scored(root: Path, model: MtebEncoder | None = None) -> TaskScore:
    tasks, results = local_tasks(root, whole=True), root / "results"
    summary = evaluate(model or mteb_encoder(), tasks, results=results, progress=False)
    (task,) = summary.tasks.values()
    for score in (task.score, *task.subsets.values()):
        assert score.low is None or score.low <= score.value <= score.high
    return task


def test_sts_is_scipys_spearman_in_each_language(tmp_path: Path) -> None:
    task = scored(sts(tmp_path))
    rows = pq.read_table(tmp_path / "eval/sts/pairs.parquet").to_pylist()
    for lang, score in task.subsets.items():
        part = [row for row in rows if row["lang"] == lang]
        similar = np.diag(cosines([r["text1"] for r in part], [r["text2"] for r in part]))
        expected = spearmanr(similar, [row["score"] for row in part]).statistic
        assert score.value == pytest.approx(expected, abs=1e-6)
    assert task.score.value == pytest.approx(np.mean([s.value for s in task.subsets.values()]))


def test_pair_classification_is_scikit_learns_average_precision(tmp_path: Path) -> None:
    a, b = random_texts(30, 1), random_texts(30, 2)
    labels = ["entailment", "neutral", "contradiction"] * 10
    rows = [
        {"text1": x, "text2": y, "label": label, "lang": "en"}
        for x, y, label in zip(a, b, labels, strict=True)
    ]
    task = scored(folder(tmp_path, "pair_classification", pairs=rows))
    expected = average_precision_score(np.array(labels) == "entailment", np.diag(cosines(a, b)))
    assert task.score.value == pytest.approx(expected, abs=1e-6)


def test_retrieval_is_a_hand_written_ndcg(tmp_path: Path) -> None:
    task = scored(retrieval(tmp_path))
    corpus, queries, qrels = (
        pq.read_table(tmp_path / f"eval/retrieval/{name}.parquet").to_pylist()
        for name in ("corpus", "queries", "qrels")
    )
    table = cosines([query["text"] for query in queries], [document["text"] for document in corpus])
    relevant = {(row["query_id"], row["corpus_id"]) for row in qrels}
    discounts = 1 / np.log2(np.arange(10) + 2)
    scores = []
    for query, row in zip(queries, table, strict=True):
        hits = [(query["id"], corpus[i]["id"]) in relevant for i in np.argsort(-row)[:10]]
        scores.append(discounts[hits].sum() / discounts[:3].sum())
    # mteb keeps five decimals of retrieval scores.
    assert task.score.value == pytest.approx(round(np.mean(scores), 5), abs=1e-9)


def test_bitext_is_scikit_learns_f1_of_the_nearest_english_text(tmp_path: Path) -> None:
    a, b = random_texts(30, 1), random_texts(30, 2)
    b = [f"{x} {y}" for x, y in zip(a, b, strict=True)]
    rows = [{"s1": x, "s2": y, "lang1": "en", "lang2": "de"} for x, y in zip(a, b, strict=True)]
    task = scored(folder(tmp_path, "bitext", pairs=rows))
    nearest = cosines(b, a).argmax(1)
    expected = f1_score(np.arange(30), nearest, average="weighted", zero_division=0)
    assert task.subsets.keys() == {"de-en"}
    assert 0.1 < expected < 0.95
    assert task.score.value == pytest.approx(expected, abs=1e-6)
    assert match_scores(nearest).mean() == pytest.approx(expected, abs=1e-9)


def test_classification_is_scikit_learns_accuracy_on_eight_texts_a_label(tmp_path: Path) -> None:
    labels = ["animal", "bird", "fish"]
    parts = {
        part: [
            {"text": f"{text} {WORDS[i % 3]}", "label": labels[i % 3], "lang": "en"}
            for i, text in enumerate(random_texts(90, seed))
        ]
        for part, seed in (("train", 1), ("test", 2))
    }
    task = scored(folder(tmp_path, "classification", **parts))
    train, test = parts["train"], parts["test"]
    order, accuracies = list(range(90)), []
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)
        rows = [i for label in labels for i in [j for j in order if train[j]["label"] == label][:8]]
        rows.sort(key=order.index)
        model = LogisticRegression(max_iter=100, random_state=42)
        model.fit(embed([train[i]["text"] for i in rows]), [train[i]["label"] for i in rows])
        guesses = model.predict(embed([row["text"] for row in test]))
        accuracies.append(accuracy_score([row["label"] for row in test], guesses))
    assert task.score.value == pytest.approx(np.mean(accuracies), abs=1e-6)


def test_clustering_is_scikit_learns_v_measure_of_k_means(tmp_path: Path) -> None:
    rows = [
        {"text": f"{text} {WORDS[i % 4]}", "label": WORDS[i % 4]}
        for i, text in enumerate(random_texts(60))
    ]
    tasks = local_tasks(folder(tmp_path, "clustering", texts=rows))
    task, again = (
        evaluate(mteb_encoder(), tasks, results=tmp_path / name, progress=False).tasks["clustering"]
        for name in ("a", "b")
    )
    assert again.score == task.score, "a second model must see the same draws"
    rng = random.Random(42)
    rows = [rows[i] for i in rng.sample(range(60), k=60)]
    vectors, labels = embed([row["text"] for row in rows]), np.array([r["label"] for r in rows])
    model = MiniBatchKMeans(4, batch_size=512, init="k-means++", n_init=1, random_state=42)
    scores = []
    for _ in range(10):
        chosen = rng.choices(range(60), k=16_384)
        scores.append(v_measure_score(labels[chosen], model.fit_predict(vectors[chosen])))
    assert task.score.value == pytest.approx(np.mean(scores), abs=1e-6)
    assert task.score.low is None


def test_large_tables_are_cut_to_the_same_rows_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "sts", replace(KINDS["sts"], most=10))

    def kept(*, whole: bool = False) -> tuple[dict[str, list[str]], str, str]:
        (task,) = local_tasks(tmp_path, whole=whole)
        task.load_data()
        texts = {lang: part["test"]["sentence2"] for lang, part in task.dataset.items()}
        return texts, task.metadata.description, task.metadata.dataset["revision"]

    path = sts(tmp_path) / "eval/sts/pairs.parquet"
    texts, description, revision = kept()
    assert {lang: len(part) for lang, part in texts.items()} == {"de": 5, "en": 5}
    assert "pairs cut to 10 rows" in description
    everything, description, another = kept(whole=True)
    assert {lang: len(part) for lang, part in everything.items()} == {"de": 20, "en": 20}
    assert all(set(part) < set(everything[lang]) for lang, part in texts.items())
    assert "cut" not in description
    assert revision != another
    pq.write_table(pa.Table.from_pylist(pq.read_table(path).to_pylist()[::-1]), path)
    assert {lang: part[::-1] for lang, part in kept()[0].items()} == texts


def test_a_cut_corpus_keeps_only_questions_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "retrieval", replace(KINDS["retrieval"], most=20))
    (task,) = local_tasks(retrieval(tmp_path))
    task.load_data()
    split = task.dataset["en"]["test"]
    documents = set(split["corpus"]["id"])
    assert len(documents) == 20
    assert 0 < len(split["queries"]) < 9
    assert set(split["queries"]["id"]) == split["relevant_docs"].keys()
    assert all(answers.keys() <= documents for answers in split["relevant_docs"].values())


def test_training_parts_keep_some_texts_of_every_label_and_language(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": WORDS[i % 2], "lang": "en" if i % 3 else "de"}
        for i, text in enumerate(random_texts(300))
    ]
    (task,) = local_tasks(folder(tmp_path, "classification", train=rows, test=rows))
    task.load_data()
    for part in task.dataset.values():
        assert Counter(part["train"]["label"]) == {0: TRAIN_TEXTS, 1: TRAIN_TEXTS}
    assert sum(len(part["test"]) for part in task.dataset.values()) == 300


def test_the_longest_corpora_are_left_to_runs_that_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sts(tmp_path)
    retrieval(tmp_path)
    assert len(local_tasks(tmp_path)) == 2
    monkeypatch.setattr("polyvec.eval.task_folders.MOST_CHARACTERS", 100)
    assert [task.metadata.name for task in local_tasks(tmp_path)] == ["sts"]
    assert len(local_tasks(tmp_path, whole=True)) == 2
    assert len(local_tasks(tmp_path, ["retrieval"])) == 1


def test_needles_are_scored_by_their_first_document(tmp_path: Path) -> None:
    path = retrieval(tmp_path) / "eval/retrieval/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metric": "accuracy@1"}))
    assert scored(tmp_path).metric == "ndcg_at_1"


def test_each_kind_of_task_is_read_by_the_papers_adapter(tmp_path: Path) -> None:
    sts(tmp_path)
    retrieval(tmp_path)
    seen: dict[str, set[str | None]] = {}

    def spy(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        for text in texts:
            seen.setdefault(text, set()).add(adapter)
        return embed(texts)

    for kind, query in (("sts", "text-matching"), ("retrieval", "retrieval.query")):
        seen.clear()
        tasks = local_tasks(tmp_path, [kind])
        evaluate(mteb_encoder(spy), tasks, results=tmp_path / "results", progress=False)
        assert seen[random_texts(1, 2)[0]] == {query}
        assert seen[random_texts(1, 1)[0]] == {query.replace("query", "passage")}


def test_equal_texts_are_encoded_once_and_keep_their_places(tmp_path: Path) -> None:
    others = ["ant bee", "cat dog elk", "ant fox", "hen", "ant bee"]
    rows = [
        {"text1": "ant bee", "text2": text, "score": float(i), "lang": "en"}
        for i, text in enumerate(others)
    ]
    asked: list[str] = []

    def spy(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        asked.extend(texts)
        return embed(texts)

    task = scored(folder(tmp_path, "sts", pairs=rows), mteb_encoder(spy))
    assert sorted(asked) == ["ant bee", "ant bee", "ant fox", "cat dog elk", "hen"]
    expected = spearmanr([1, *cosines(["ant bee"], others[1:4])[0], 1], range(5)).statistic
    assert task.score.value == pytest.approx(expected, abs=1e-6)


def test_a_killed_run_goes_on_with_the_task_it_was_in(tmp_path: Path) -> None:
    sts(tmp_path)
    retrieval(tmp_path)
    asked: list[str | None] = []

    def dying(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        asked.append(adapter)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return embed(texts)

    tasks, results = local_tasks(tmp_path), tmp_path / "results"
    with pytest.raises(KeyboardInterrupt):
        evaluate(mteb_encoder(dying), tasks, results=results, progress=False)
    assert asked[:2] == ["retrieval.query", "retrieval.passage"]
    asked.clear()
    resumed = evaluate(mteb_encoder(dying), tasks, results=results, progress=False)
    assert asked == ["text-matching"] * 4
    whole = evaluate(mteb_encoder(), tasks, results=tmp_path / "whole", progress=False)
    for name, task in whole.tasks.items():
        assert resumed.tasks[name].score.value == pytest.approx(task.score.value, abs=1e-5)


def test_a_task_is_scored_again_when_its_data_or_the_model_changed(tmp_path: Path) -> None:
    before = scored(sts(tmp_path))
    path = tmp_path / "eval/sts/pairs.parquet"
    pq.write_table(pa.Table.from_pylist(pq.read_table(path).to_pylist()[:-5]), path)
    after = scored(tmp_path)
    assert before.revision != after.revision
    assert before.score != after.score
    changed = MtebEncoder(lambda texts, adapter: embed(texts) ** 3, model_meta("tiny", "2"))
    assert scored(tmp_path, changed).score != after.score


def test_mtebs_own_files_are_written_beside_the_summary(tmp_path: Path) -> None:
    task = scored(sts(tmp_path))
    (path,) = (tmp_path / "results/mteb").glob("**/sts.json")
    scores = json.loads(path.read_text())["scores"]["test"]
    for score in scores:
        assert task.subsets[score["hf_subset"]].value == pytest.approx(
            score["main_score"], abs=1e-5
        )


def test_an_interval_holds_the_score_and_narrows_with_more_items() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.random(50), rng.random(5000)
    low, high = interval(mean_draws(few))
    assert low < few.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * few.std() / 50**0.5, rel=0.15)
    assert np.diff(interval(mean_draws(many))) < 0.2 * (high - low)
    x = rng.normal(size=300)
    y = x + rng.normal(size=300)
    low, high = interval(spearman_draws(x, y))
    assert low < spearmanr(x, y).statistic < high < low + 0.2


def test_query_scores_follow_the_ranking() -> None:
    relevant = {"q": {"a": 1}}
    found = {"q": {"b": 0.9, "a": 0.8, "c": 0.1}}
    assert query_scores("ndcg_at_10", relevant, found) == pytest.approx([1 / np.log2(3)])
    assert query_scores("ndcg_at_1", relevant, found) == [0]


def test_bm25_finds_words_and_skips_what_is_not_retrieval(tmp_path: Path) -> None:
    sts(tmp_path)
    retrieval(tmp_path)
    model = BASELINES["bm25"]()
    summary = evaluate(model, local_tasks(tmp_path), results=tmp_path / "r", progress=False)
    assert summary.tasks.keys() == {"retrieval"}
    assert 0 < summary.tasks["retrieval"].score.value < 1


def test_a_bag_of_words_ranks_by_shared_words(tmp_path: Path) -> None:
    others = ["ant bee", "ant cat", "ant dog elk fox", "owl"]
    rows = [
        {"text1": "ant bee", "text2": text, "score": 5.0 - i, "lang": "en"}
        for i, text in enumerate(others)
    ]
    task = scored(folder(tmp_path, "sts", pairs=rows), BASELINES["tf-idf"]())
    assert task.score.value == pytest.approx(1)


def test_a_dim_is_a_prefix_at_length_one_and_no_text_is_encoded_twice() -> None:
    asked: list[str] = []

    def spy(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        asked.extend(texts)
        return embed(texts)

    memory = remembered(spy)
    expected = embed(["ant bee", "cat"])[:, :4]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(truncated(memory, 4)(["ant bee", "cat"], None), expected, atol=1e-6)
    assert truncated(memory, 12)(["cat", "owl"], None).shape == (2, 12)
    assert asked == ["ant bee", "cat", "owl"]


def test_a_polyvec_model_scores_as_its_encoder_encodes(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sts(tmp_path)
    results = tmp_path / "results"
    options = EvalOptions(tasks=("sts",), data=tmp_path, results=results, device="cpu")
    verbs.run((str(tiny_model),), options=options)
    assert "| sts | Spearman | **" in capsys.readouterr().out
    verbs.dims(str(tiny_model), options=options)
    verbs.adapters(str(tiny_model), options=options)
    values = {s.variant: s.tasks["sts"].subsets["en"].value for s in read_summaries(results)}

    rows = pq.read_table(tmp_path / "eval/sts/pairs.parquet").to_pylist()[:20]
    encoder = Encoder.load(tiny_model, device="cpu")
    by_hand = {
        "": {"task": "text-matching"},
        "dim 8": {"task": "text-matching", "dim": 8},
        "dim 32": {"task": "text-matching"},
        "adapter none": {"task": None},
        "adapter retrieval": {"task": "retrieval.passage"},
    }
    for variant, choice in by_hand.items():
        a, b = (
            encoder.encode([row[side] for row in rows], **choice) for side in ("text1", "text2")
        )
        expected = spearmanr((a * b).sum(1), [row["score"] for row in rows]).statistic
        # The last bits of a cosine depend on the batch, and may swap two pairs' ranks.
        assert values[variant] == pytest.approx(expected, abs=0.02), variant
    assert len(values) == 1 + 3 + 6
    with pytest.raises(ValueError, match="no folder"):
        verbs.run((str(tmp_path / "nothing"),), options=options)


def test_comparisons_change_one_thing_and_keep_each_result(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieval(tmp_path)
    results = tmp_path / "results"
    options = EvalOptions(tasks=("retrieval",), data=tmp_path, results=results, device="cpu")
    for verb in ("prompts", "long", "quantised"):
        getattr(verbs, verb)(str(tiny_model), options=options)
    assert "| bits rescored | " in capsys.readouterr().out
    values = {s.variant: s.tasks["retrieval"].score.value for s in read_summaries(results)}
    assert values.keys() == {
        "instruction with",
        "instruction without",
        "base 10000",
        "base 20000",
        *(f"vectors {name}" for name in ("float32", "int8", "bits", "bits rescored")),
    }
    assert values["instruction with"] != values["instruction without"]
    encoder = Encoder.load(tiny_model, device="cpu")
    assert values["vectors float32"] == values["instruction with"]
    assert encoder.config.rope_base in (10_000, 20_000)
    assert values[f"base {encoder.config.rope_base:.0f}"] == values["vectors float32"]


def test_without_instructions_only_the_words_before_a_text_are_missing(tiny_model: Path) -> None:
    encoder = Encoder.load(tiny_model, device="cpu")
    plain = without_instructions(encoder)
    task = encoder.config.tasks[0]
    ours = plain.encode(["ant bee"], task=task.name)
    assert task.prompt
    assert not np.allclose(ours, encoder.encode(["ant bee"], task=task.name), atol=1e-4)
    both = plain.encode([task.prompt + "ant bee"], task=task.name)
    np.testing.assert_allclose(both, encoder.encode(["ant bee"], task=task.name), atol=1e-5)


def test_another_base_changes_long_texts_and_is_set_at_every_call(tiny_model: Path) -> None:
    encoder = Encoder.load(tiny_model, device="cpu")
    text = [" ".join(WORDS)]
    trained, read = at_base(encoder, 10_000.0), at_base(encoder, 20_000.0)
    first = trained(text, None)
    assert not np.allclose(first, read(text, None), atol=1e-5)
    np.testing.assert_allclose(trained(text, None), first, atol=1e-6)


def test_a_document_scores_what_its_best_chunk_scores(tmp_path: Path, tiny_model: Path) -> None:
    retrieval(tmp_path)
    encoder, (task,) = Encoder.load(tiny_model, device="cpu"), local_tasks(tmp_path, whole=True)
    task.load_data()
    parts = task.dataset["en"]["test"]
    corpus, queries = parts["corpus"].select(range(5)), parts["queries"].select(range(2))
    options = {
        "task_metadata": task.metadata,
        "hf_split": "test",
        "hf_subset": "en",
        "encode_kwargs": {},
        "num_proc": None,
    }
    asked = encoder.encode(queries["text"], task="retrieval.query")
    for cut in (
        Cut(tokens=None),
        Cut(tokens=4, late=False),
        Cut(tokens=4),
        Cut(tokens=4, window=16),
    ):
        model = ChunkSearch(encoder, model_meta("tiny", "1"), cut)
        model.index(corpus, **options)
        found = model.search(queries, top_k=5, **options)
        for document in corpus:
            chunks = encoder.encode_chunks(
                document["text"],
                task="retrieval.passage",
                chunks=cut.tokens or 10_000,
                late=cut.late,
                window=cut.window,
            ).vectors
            for query, best in zip(queries, (asked @ chunks.T).max(1), strict=True):
                assert found[query["id"]][document["id"]] == pytest.approx(best, abs=1e-5)


def test_fewer_bits_keep_directions_and_rescoring_orders_what_bits_found() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def look_up(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        return vectors[[int(text) for text in texts]]

    names = [str(i) for i in range(200)]
    assert ((as_int8(look_up)(names, None) * vectors).sum(1) > 0.9995).all()
    bits = as_binary(look_up)(names, None)
    hamming = (np.sign(vectors[:5, None]) != np.sign(vectors[None])).sum(2)
    np.testing.assert_allclose(bits[:5] @ bits.T, 1 - hamming / 32, atol=1e-6)

    queries = vectors[:5] + 0.5 * rng.normal(size=(5, 64)).astype(np.float32) / 8
    scores = rescore(queries, vectors)
    exact = queries @ vectors.T
    # Compared as rows of ranks: the first ones by cosine, the rest by bits alone.
    for row, (score, cosine) in enumerate(zip(scores, exact, strict=True)):
        order = np.argsort(-score)
        found, rest = order[:CANDIDATES], order[CANDIDATES:]
        np.testing.assert_allclose(score[found], cosine[found], atol=0.01)
        distances = (np.sign(queries[row]) != np.sign(vectors)).sum(1)
        assert distances[found].max() <= distances[rest].min()
        assert (np.diff(distances[rest]) >= 0).all()
    few = rescore(queries, vectors[:10])
    np.testing.assert_allclose(few, exact[:, :10], atol=0.01)


def test_a_fall_below_the_interval_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASELINES, "tiny", mteb_encoder)
    options = EvalOptions(data=sts(tmp_path), results=tmp_path / "results")
    verbs.run(("tiny",), options=options)
    path = tmp_path / "results/tiny.json"
    verbs.run(("tiny",), against=path, options=options)
    assert "no score fell" in capsys.readouterr().out
    before = read_summaries(tmp_path / "results")[0]
    task = before.tasks["sts"]
    low = Score(task.score.value + 0.02, task.score.value + 0.01, task.score.value + 0.03)
    before.tasks["sts"] = replace(task, score=low)
    write_summary(tmp_path / "before.json", before)
    status = verbs.run(("tiny",), against=tmp_path / "before.json", options=options)
    assert status == ExitStatus.INCOMPLETE
    assert "tiny sts:" in capsys.readouterr().out
    before.tasks["sts"] = replace(task, revision="other")
    write_summary(tmp_path / "before.json", before)
    with pytest.raises(ValueError, match="other data"):
        verbs.run(("tiny",), against=tmp_path / "before.json", options=options)


def test_two_models_draws_are_of_the_same_items(tmp_path: Path) -> None:
    better = scored(sts(tmp_path))
    worse = scored(tmp_path, MtebEncoder(lambda t, a: embed(t)[:, :6], model_meta("worse", "1")))
    value = better.score.value - worse.score.value
    paired = difference(better.draws, worse.draws, value)
    assert paired is not None
    # By hand: resample the pairs of each language once for both models.
    rows = pq.read_table(tmp_path / "eval/sts/pairs.parquet").to_pylist()
    draws = []
    for lang in ("de", "en"):
        part = [row for row in rows if row["lang"] == lang]
        a, b = (embed([row[side] for row in part]) for side in ("text1", "text2"))
        gold = np.array([row["score"] for row in part])
        rng = np.random.default_rng(7)
        picks = rng.integers(len(part), size=(2000, len(part)))
        draws.append(
            [
                spearmanr((a * b).sum(1)[pick], gold[pick]).statistic
                - spearmanr((a * b)[:, :6].sum(1)[pick], gold[pick]).statistic
                for pick in picks
            ]
        )
    spread = np.mean(draws, axis=0).std()
    assert paired[1] - paired[0] == pytest.approx(2 * 1.96 * spread, rel=0.2)
    assert np.mean(paired) == pytest.approx(value)
    assert difference(better.draws, (), value) is None


def test_a_name_that_selects_nothing_is_an_error_that_lists_the_tasks(tmp_path: Path) -> None:
    sts(tmp_path)
    assert len(local_tasks(tmp_path, ["st*", "sts"])) == 1
    with pytest.raises(ValueError, match=r"no task 'stz'.*sts"):
        local_tasks(tmp_path, ["stz"])
    with pytest.raises(ValueError, match="no task folder"):
        local_tasks(tmp_path / "eval" / "sts")


@pytest.mark.parametrize("lang", ["en", "zh-Hant", "pcm", "arq", "tw", "no", "sh", "am"])
def test_languages_are_named_as_mteb_names_them(lang: str) -> None:
    check_language_code(language_script(lang))


def summary(model: str, value: float, variant: str = "") -> Summary:
    one = Score(value, value - 0.01, value + 0.01)
    tasks = {
        "stsb-dev": TaskScore("STS", "cosine_spearman", "r", 1.0, one, {"de": one, "en": one}),
        "needle-512": TaskScore("Retrieval", "ndcg_at_1", "r", 1.0, one, {"en": one}),
        "topics": TaskScore("Classification", "accuracy", "r", 1.0, one, {"de": one, "sw": one}),
    }
    return Summary(model, variant, "w", "2.26", "2 CPU cores", "2026-01-01", tasks)


def test_a_summary_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    write_summary(tmp_path / "a.json", summary("a", 0.5))
    assert read_summaries(tmp_path) == [summary("a", 0.5)]
    with pytest.raises(ValueError, match="holds no results"):
        read_summaries(tmp_path / "none")


def test_the_report_is_written_from_the_files_alone(tmp_path: Path) -> None:
    results, page = tmp_path / "results", tmp_path / "results.md"
    rows = [("polyvec-mini", 0.5, ""), ("other", 0.61, ""), ("polyvec-mini", 0.4, "dim 32")]
    for i, row in enumerate(rows):
        write_summary(results / f"{i}.json", summary(*row))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: start -->\nold\n<!-- results: end -->\nafter\n")
    verbs.report(results=results, out=page, page=tmp_path / "results.html", readme=readme)
    text = page.read_text()
    assert readme.read_text().splitlines()[-4:] == [
        "| other | 61.0 | 61.0 | 61.0 |",
        "",
        "<!-- results: end -->",
        "after",
    ]
    assert text == render_report(read_summaries(results))
    assert "| stsb-dev | Spearman | 50.0 [49.0, 51.0] | **61.0** [60.0, 62.0] |" in text
    assert "| model | STS | classification | long context |" in text
    assert "| 32 | 40.0 | 40.0 | 40.0 |" in text
    assert "| sw | 50.0 [49.0, 51.0] |" in text
    assert "polyvec eval run polyvec-mini other" in text
