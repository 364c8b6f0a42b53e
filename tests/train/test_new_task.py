"""New tasks: the new adapter works, and no other weight changes."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvec.checkpoint import Int8Matrix, Weights, load_checkpoint, save_checkpoint, save_compact
from polyvec.config import ModelConfig
from polyvec.encoder import Encoder
from polyvec.tasks import Task
from polyvec.tokenizer import Tokenizer
from polyvec.train.bank import add_adapters
from polyvec.train.divergence import Diverged
from polyvec.train.new_task import choose_start, make_adapter
from polyvec.train.options import Options
from polyvec.train.row_formats import ROW_FORMATS
from tests.processes import wait_for

WORDS = "fox dog den snow sleeps jumps brown lazy quick under over where the a".split()


def make_rows(kind: str, count: int = 60) -> list[dict]:
    """Rows from which a model can learn: the word in the middle matters."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        left, right = (" ".join(rng.choice(WORDS, 4)) for _ in range(2))
        animal = ("Fuchs", "Hund", "лиса")[i % 3]
        if kind == "classification":
            rows.append({"text": f"{left} {animal} {right}", "label": animal})
        elif kind in ("pairs", "retrieval"):
            rows.append({"query": f"{left} {i}", "positive": f"{right} {i}", "negatives": [left]})
        else:
            same = float(i % 2)
            rows.append({"text1": left, "text2": left if same else right, "score": same})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return path


def options(kind: str = "classification", **changes) -> Options:
    few = {"task": "mine", "kind": kind, "start": "none", "epochs": 2, "batch_size": 8, "folds": 1}
    return Options(**{**few, **changes})


def same(one: np.ndarray | Int8Matrix, two: np.ndarray | Int8Matrix) -> bool:
    """Whether two weights have the same bits and the same format."""
    if isinstance(one, Int8Matrix) or isinstance(two, Int8Matrix):
        return (
            isinstance(one, Int8Matrix)
            and isinstance(two, Int8Matrix)
            and same(one.values, two.values)
            and same(one.scales, two.scales)
        )
    return one.dtype == two.dtype and one.tobytes() == two.tobytes()


@pytest.fixture(scope="module")
def compact_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in the format of the bundled model."""
    config, weights = load_checkpoint(tiny_model)
    folder = tmp_path_factory.mktemp("compact") / "tiny"
    files = {**Tokenizer.load(tiny_model, 64).files(), "README.md": b"# tiny\n"}
    save_compact(folder, config, weights, files=files)
    return folder


def check_untouched(
    before: tuple[ModelConfig, Weights], after: tuple[ModelConfig, Weights], added: int = 1
) -> None:
    """Check that only adapters were added, and that all other weights are bit for bit equal."""
    assert after[0].tasks[:-added] == before[0].tasks
    assert after[1].keys() == before[1].keys()
    moved = 0
    for name, weight in before[1].items():
        grown = after[1][name]
        if "lora" in name:
            assert isinstance(grown, np.ndarray)
            assert len(grown) == len(weight) + added
            moved += bool(np.any(grown[-1].astype(np.float32)))
            grown = grown[:-added]
        assert same(weight, grown), name
    assert moved > 10


@pytest.mark.parametrize("layout", ["compact", "native-float32", "native-bfloat16"])
def test_all_other_weights_stay_bit_for_bit_equal(
    layout: str, tiny_model: Path, compact_model: Path, tmp_path: Path
) -> None:
    model = compact_model if layout == "compact" else tiny_model
    if layout.endswith("16"):
        model = tmp_path / "narrow"
        files = Tokenizer.load(tiny_model, 64).files()
        save_checkpoint(model, *load_checkpoint(tiny_model), dtype="bfloat16", files=files)
    data = write(tmp_path / "rows.parquet", make_rows("classification"))
    make_adapter(model, data, tmp_path / "out", options())
    check_untouched(load_checkpoint(model), load_checkpoint(tmp_path / "out"))
    files = [
        path.stat().st_size
        for path in (model, tmp_path / "out")
        for path in path.glob("*.safetensors")
    ]
    assert files[1] < 1.2 * files[0]


@pytest.mark.parametrize("kind", [*ROW_FORMATS])
def test_the_new_task_encodes_and_the_others_encode_as_before(
    kind: str, compact_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.jsonl", make_rows(kind))
    outcome = make_adapter(compact_model, data, tmp_path / "out", options(kind, prompt="fox: "))
    assert {*outcome.scores} == {"none", "mine"}
    assert outcome.num_rows == 60
    assert outcome.num_scored == 12
    texts = ["a fox sleeps", "лиса", ""]
    old, new = Encoder.load(compact_model), Encoder.load(tmp_path / "out")
    assert new.config.tasks[-1].prompt == "fox: "
    name = new.config.tasks[-1].name
    assert name == ("mine.passage" if kind == "retrieval" else "mine")
    for task in (None, *(task.name for task in old.config.tasks)):
        np.testing.assert_allclose(
            new.encode(texts, task=task), old.encode(texts, task=task), atol=1e-6
        )
    assert np.abs(new.encode(texts, task=name) - new.encode(texts)).max() > 1e-3
    assert "`mine`" in (tmp_path / "out/README.md").read_text()
    assert "# tiny" in (tmp_path / "out/README.md").read_text()
    assert (tmp_path / "out.run/run.png").stat().st_size > 10_000


def test_training_improves_the_score_and_the_loss(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", make_rows("classification", 160))
    outcome = make_adapter(
        compact_model, data, tmp_path / "out", options(epochs=12, learning_rate=0.02)
    )
    for name, score in outcome.scores["mine"].items():
        assert score.value > outcome.scores["none"][name].value + 0.1
    assert "is better than the model without an adapter" in outcome.advice
    lines = (tmp_path / "out.run/metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    assert outcome.warnings == ()


def test_a_second_task_is_added_to_the_first(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.parquet", make_rows("scored"))
    make_adapter(compact_model, data, tmp_path / "one", options("scored"))
    again = options("scored", task="second", start="mine", held=0.0)
    outcome = make_adapter(tmp_path / "one", data, tmp_path / "two", again)
    assert (outcome.num_rows, outcome.num_scored, outcome.scores) == (60, 0, {})
    check_untouched(load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two"))


def test_the_best_start_is_the_task_with_the_best_score(compact_model: Path) -> None:
    encoder = Encoder.load(compact_model)
    kind = ROW_FORMATS["scored"]
    rows = [
        {"text1": row["text1"], "text2": row["text2"], "score": 0.0} for row in make_rows("scored")
    ]
    # Scores that are the cosines of one task: it ranks them perfectly, the others do not.
    left, right = (
        encoder.encode([row[name] for row in rows], task="separation")
        for name in ("text1", "text2")
    )
    for row, cosine in zip(rows, (left * right).sum(1), strict=True):
        row["score"] = float(cosine)
    assert choose_start(encoder, kind, rows, [Task("mine")]) == "separation"


def test_a_named_start_is_a_copy_of_that_adapter(compact_model: Path, tmp_path: Path) -> None:
    """With a rate of almost zero, the new task equals the old one."""
    data = write(tmp_path / "rows.parquet", make_rows("pairs"))
    slow = options("pairs", start="separation", learning_rate=1e-9)
    outcome = make_adapter(compact_model, data, tmp_path / "out", slow)
    encoder = Encoder.load(tmp_path / "out")
    texts = ["a fox sleeps", "лиса"]
    np.testing.assert_allclose(
        encoder.encode(texts, task="mine"), encoder.encode(texts, task="separation"), atol=1e-5
    )
    for name, score in outcome.scores["mine"].items():
        assert score.value == pytest.approx(outcome.scores["separation"][name].value, abs=1e-6)


def test_a_killed_run_resumes_and_ends_with_the_same_weights(
    compact_model: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of training, and then the same command again."""
    data = write(tmp_path / "rows.parquet", make_rows("classification", 120))
    wanted = options(epochs=8, held=0.0)
    make_adapter(compact_model, data, tmp_path / "whole", wanted)
    command = (
        "from pathlib import Path; from polyvec.train.new_task import make_adapter; "
        "from polyvec.train.options import Options; "
        f"make_adapter(Path({str(compact_model)!r}), Path({str(data)!r}), "
        f"Path({str(tmp_path / 'cut')!r}), {wanted!r})"
    )
    with subprocess.Popen([sys.executable, "-c", command]) as run:
        try:
            written = tmp_path / "cut.run"
            wait_for(lambda: run.poll() is not None or [*written.glob("**/step-*/optimizer-1")])
        finally:
            run.kill()
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut").exists()
    make_adapter(compact_model, data, tmp_path / "cut", wanted)
    one, two = (load_checkpoint(tmp_path / name)[1] for name in ("whole", "cut"))
    assert all(same(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"task": "separation"}, "already has a task 'separation'"),
        ({"task": "best"}, "is reserved"),
        ({"task": "a/b"}, "not a plain name"),
        ({"task": "retrieval_query"}, "share a folder"),
        ({"start": "cooking"}, "unknown task 'cooking'"),
        ({"held": 1.0}, "below 1"),
        ({"epochs": 0}, "epochs and folds must be at least 1"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2, "start": "separation"}, "use --start none for a lower rank"),
        ({"update": True}, "unknown task 'mine'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cuda:99"}, "there is no device 'cuda:99'"),
        ({"loss": "kl"}, "have no teacher's scores"),
        ({"query_prompt": "q: "}, "only --kind retrieval"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(
    changes: dict, part: str, compact_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.csv", make_rows("classification", 12))
    with pytest.raises(ValueError, match=part):
        make_adapter(compact_model, data, tmp_path / "out", options(**changes))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_higher_rank_leaves_the_other_adapters_and_the_start_as_they_are(
    compact_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.parquet", make_rows("pairs"))
    wider = options("pairs", start="separation", rank=6, learning_rate=1e-9, held=0.0)
    make_adapter(compact_model, data, tmp_path / "out", wider)
    old, new = Encoder.load(compact_model), Encoder.load(tmp_path / "out")
    assert (old.config.adapter_rank, new.config.adapter_rank) == (4, 6)
    assert old.config.adapter_scale == new.config.adapter_scale
    texts = ["a fox sleeps", "лиса"]
    for task in (None, *(task.name for task in old.config.tasks)):
        np.testing.assert_allclose(
            new.encode(texts, task=task), old.encode(texts, task=task), atol=1e-6
        )
    np.testing.assert_allclose(
        new.encode(texts, task="mine"), old.encode(texts, task="separation"), atol=1e-5
    )


def test_queries_and_passages_are_trained_together(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.parquet", make_rows("retrieval"))
    chosen = options("retrieval", start="retrieval", query_prompt="the fox ", prompt="the dog ")
    outcome = make_adapter(compact_model, data, tmp_path / "out", chosen)
    config, weights = load_checkpoint(tmp_path / "out")
    assert config.tasks[-2:] == (Task("mine.query", "the fox "), Task("mine.passage", "the dog "))
    check_untouched(load_checkpoint(compact_model), (config, weights), added=2)
    assert {*outcome.scores} == {"none", "retrieval", "mine"}
    bank = weights["layers.0.up.lora_b"]
    assert isinstance(bank, np.ndarray)
    assert not np.array_equal(bank[-1], bank[-2])


def test_a_task_that_is_trained_further_is_replaced(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.parquet", make_rows("classification"))
    make_adapter(compact_model, data, tmp_path / "one", options(prompt="fox: ", held=0.0))
    with pytest.raises(ValueError, match="train it further with --update"):
        make_adapter(tmp_path / "one", data, tmp_path / "two", options(held=0.0))
    make_adapter(tmp_path / "one", data, tmp_path / "two", options(update=True, held=0.0))
    (before, old), (after, new) = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert after == before
    for name, weight in old.items():
        changed = new[name]
        if "lora" in name:
            assert isinstance(weight, np.ndarray) and isinstance(changed, np.ndarray)
            weight, changed = weight[:-1], changed[:-1]
        assert same(weight, changed), name
    assert not np.array_equal(old["layers.0.up.lora_b"], new["layers.0.up.lora_b"])


@pytest.mark.parametrize("loss", ["kl", "margin-mse"])
def test_a_teachers_scores_are_learnt(loss: str, compact_model: Path, tmp_path: Path) -> None:
    """The teacher prefers the text that has the query's first word, however few words it has."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(40):
        first, *others = rng.choice(WORDS, 4, replace=False)
        texts = [first, *others]
        rows.append({"query": f"{first} {others[0]}", "positive": texts[0]})
        rows[-1] |= {"negatives": texts[1:], "scores": [5.0, -5.0, 0.0, 0.0]}
    rows.append({"query": "a", "positive": "b", "negatives": ["c"], "scores": [1.0]})
    data = write(tmp_path / "rows.jsonl", rows)
    chosen = options("pairs", loss=loss, epochs=12, learning_rate=0.02, held=0.0)
    outcome = make_adapter(compact_model, data, tmp_path / "out", chosen)
    assert outcome.num_rows == 40
    assert "scores has 1 numbers" in outcome.blank_rows[0].reason
    lines = (tmp_path / "out.run/metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_the_whole_backbone_is_trained(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.parquet", make_rows("retrieval"))
    chosen = options("retrieval", start="retrieval", full=True, learning_rate=1e-3)
    make_adapter(compact_model, data, tmp_path / "out", chosen)
    config, weights = load_checkpoint(tmp_path / "out")
    before = load_checkpoint(compact_model)[1]
    assert [task.name for task in config.tasks] == ["mine.query", "mine.passage"]
    for name in ("embeddings.word.weight", "layers.1.qkv.weight", "layers.0.attention_norm.weight"):
        assert not same(weights[name], before[name])
    vectors = Encoder.load(tmp_path / "out").encode(["a fox sleeps"], task="mine.query")
    assert vectors.shape == (1, 32)


def test_a_diverging_run_says_so_and_writes_no_model(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.parquet", make_rows("classification"))
    wild = options(learning_rate=1e30, epochs=6, held=0.0)
    with pytest.raises(Diverged, match=r"diverged at step .*Use a lower learning rate"):
        make_adapter(compact_model, data, tmp_path / "out", wild)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("suffix", "kind", "columns"),
    [
        (
            ".parquet",
            "classification",
            {"text": ["a", "b", "c", " "], "label": [0.0, 1.0, None, 1.0]},
        ),
        (".tsv", "pairs", {"query": ["a", "b", None, "d"], "positive": ["x", "y", "z", ""]}),
        (
            ".jsonl",
            "scored",
            {"text1": ["a", "b", "c", "d"], "text2": ["u", "v", "w", ""], "score": [1, 2, None, 3]},
        ),
    ],
)
def test_rows_that_lack_what_training_needs_are_left_out_and_named(
    kind: str, columns: dict, suffix: str, polyvec, compact_model: Path, tmp_path: Path
) -> None:
    import pandas as pd

    data, table = tmp_path / f"rows{suffix}", pd.DataFrame(columns)
    if suffix == ".parquet":
        table.to_parquet(data)
    elif suffix == ".jsonl":
        table.to_json(data, orient="records", lines=True)
    else:
        table.to_csv(data, sep="\t", index=False)
    words = ["--kind", kind, "--start", "none", "--epochs", 1, "--held", 0, "--task", "mine"]
    words += ["--data", data, "--out", tmp_path / "out", "--model", compact_model]
    code, out, err = polyvec("train", "adapter", *words)
    assert code == 0, err
    assert out.startswith("2 rows, starting from none")
    assert err.count("is missing or blank") == 2


def test_a_label_that_is_no_class_is_refused_with_the_reason(
    polyvec, compact_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.parquet", [{"text": t, "label": 0.5} for t in "abc"])
    words = ["--data", data, "--task", "mine", "--kind", "classification"]
    code, _, err = polyvec("train", "adapter", *words, "--model", compact_model)
    assert code == 2
    assert f"{data}, row 1: label is 0.5, must be a text or a whole number" in err
    assert "--kind scored" in err


def test_the_output_cannot_be_the_original_model(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", make_rows("classification", 12))
    with pytest.raises(ValueError, match="choose another folder"):
        make_adapter(compact_model, data, compact_model, options())


def test_other_data_or_options_are_refused(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", make_rows("classification", 30))
    make_adapter(compact_model, data, tmp_path / "out", options(epochs=1))
    with pytest.raises(ValueError, match="run with other options"):
        make_adapter(compact_model, data, tmp_path / "out", options(epochs=2))
    write(tmp_path / "rows.csv", make_rows("classification", 31))
    with pytest.raises(ValueError, match=r"rows\.csv has changed"):
        make_adapter(compact_model, data, tmp_path / "out", options(epochs=1))


@pytest.mark.parametrize(
    ("kind", "rows", "part"),
    [
        ("classification", [{"text": "a", "label": "x"}] * 3, "two classes are needed"),
        ("pairs", [{"query": "a", "positive": "b"}] * 3, "at least two groups are needed"),
        (
            "scored",
            [{"text1": "a", "text2": "b", "score": 1}] * 3,
            "at least two scores are needed",
        ),
        ("scored", [{"text1": "a", "text2": "b", "score": "?"}], "no usable row; the first"),
    ],
)
def test_rows_from_which_nothing_can_be_learnt_are_refused(
    kind: str, rows: list[dict], part: str, compact_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=part):
        make_adapter(compact_model, data, tmp_path / "out", options(kind))


def test_a_bank_without_a_new_row_gets_zeros(tiny_config: ModelConfig) -> None:
    bank = np.ones((5, 2, 3), np.float32)
    weights: Weights = {"pooler.lora_a": bank, "layers.0.up.lora_a": bank, "x.weight": bank}
    narrow = replace(tiny_config, adapter_rank=2)
    config, grown = add_adapters(
        narrow, weights, [Task("mine")], {"layers.0.up.lora_a": bank[:1] * 2}
    )
    assert config.tasks[-1].name == "mine"
    assert (grown["pooler.lora_a"][5] == 0).all()
    assert (grown["layers.0.up.lora_a"][5] == 2).all()
    assert grown["x.weight"] is bank


@pytest.mark.parametrize(
    ("kind", "columns", "aliases"),
    [
        ("classification", {"text": "body", "label": "kind"}, {"text": "body", "label": "kind"}),
        ("pairs", {"text": "answer", "query": "q"}, {"positive": "answer", "query": "q"}),
        ("scored", {"label": "stars"}, {"score": "stars"}),
    ],
)
def test_columns_of_rows_may_have_other_names(kind: str, columns: dict, aliases: dict) -> None:
    row_format = ROW_FORMATS[kind]
    chosen = options(kind, **{f"{role}_column": name for role, name in columns.items()})
    assert chosen.aliases(row_format) == aliases
    assert options(kind).aliases(row_format) == {}
    for role in {"text", "label", "query"} - {*columns}:
        with pytest.raises(ValueError, match=f"{kind} have no --{role}-column"):
            options(kind, **{f"{role}_column": "x"}).aliases(row_format)


def test_the_command_line_reports_bad_rows_and_scores(
    polyvec, compact_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "mails.csv", make_rows("classification", 40))
    with data.open("a") as file:
        file.write(",Fuchs\n" * 7)
    words = ["--data", data, "--task", "mails", "--kind", "classification", "--epochs", 1]
    code, out, err = polyvec("train", "adapter", *words, "--model", compact_model, "--folds", 2)
    assert code == 0, err
    assert f"left out {data}, line 42: text is missing or blank" in err
    assert "left out 7 rows in all: see mails.run/bad-rows.jsonl" in err
    assert "40 rows, starting from" in out
    assert "rows held out in 2 folds, with 95 % intervals" in out
    assert "task=none" in out
    assert "task=mails" in out
    assert "accuracy of the nearest neighbour" in out
    assert "macro-F1 of logistic regression" in out
    assert "40 rows of 3 classes are few" in out
    bad = [json.loads(line) for line in Path("mails.run/bad-rows.jsonl").read_text().splitlines()]
    assert [row["number"] for row in bad] == list(range(42, 49))
    code, out, _ = polyvec("embed", "fox", "--model", "mails", "--task", "mails")
    assert code == 0
    assert len(json.loads(out)["embedding"]) == 32


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("text,stars\na,b\n", "lacks the column label; it has text, stars"),
        (None, "there is no file"),
    ],
)
def test_an_unusable_file_is_reported_in_one_sentence(
    content: str | None, part: str, polyvec, compact_model: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "mails.csv").write_text(content)
    words = ["--data", tmp_path / "mails.csv", "--task", "mails", "--kind", "classification"]
    code, _, err = polyvec("train", "adapter", *words, "--model", compact_model)
    assert code == 2
    assert err.startswith("polyvec: ")
    assert part in err


def test_negatives_and_failures_are_written(polyvec, compact_model: Path, tmp_path: Path) -> None:
    pairs = [{**row, "lang": "en", "group": str(i)} for i, row in enumerate(make_rows("pairs", 30))]
    data = write(tmp_path / "pairs.parquet", pairs)
    out = tmp_path / "mined.parquet"
    code, said, _ = polyvec("train", "negatives", data, out, "--model", compact_model, "--num", 3)
    assert code == 0
    table = pq.read_table(out).to_pydict()
    assert table["query"] == [row["query"] for row in pairs]
    assert f"{sum(map(len, table['negatives']))} negatives for 30 pairs" in said
    assert max(map(len, table["negatives"])) == 3
    code, said, _ = polyvec("train", "failures", tmp_path / "made", "--num", 20, "--num-eval", 10)
    assert code == 0
    assert "polar: 20 rows to train on, 10 questions" in said
    assert len([*tmp_path.glob("made/eval/failures-*/meta.json")]) == 4
    assert len([*tmp_path.glob("made/adapters/retrieval/failures-*.parquet")]) == 4
