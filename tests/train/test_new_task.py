"""New tasks: the new adapter works, and no other weight changes."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from polyvec.checkpoint import Int8Matrix, Weights, load_checkpoint, save_checkpoint, save_compact
from polyvec.config import ModelConfig
from polyvec.encoder import Encoder
from polyvec.tokenizer import Tokenizer
from polyvec.train.new_task import (
    Options,
    add_adapter,
    choose_start,
    hold_out,
    make_adapter,
)
from polyvec.train.row_formats import ROW_FORMATS, score_classes, score_order, score_pairs
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
        elif kind == "pairs":
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
    few = {"task": "mine", "kind": kind, "start": "none", "epochs": 2, "batch_size": 8}
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
    before: tuple[ModelConfig, Weights], after: tuple[ModelConfig, Weights]
) -> None:
    """Check that only one adapter was added, and that all other weights are bit for bit equal."""
    assert after[0].tasks[:-1] == before[0].tasks
    assert after[1].keys() == before[1].keys()
    moved = 0
    for name, weight in before[1].items():
        grown = after[1][name]
        if "lora" in name:
            assert isinstance(grown, np.ndarray)
            assert len(grown) == len(weight) + 1
            moved += bool(np.any(grown[-1].astype(np.float32)))
            grown = grown[:-1]
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
    assert outcome.num_rows + outcome.num_held == 60
    texts = ["a fox sleeps", "лиса", ""]
    old, new = Encoder.load(compact_model), Encoder.load(tmp_path / "out")
    assert new.config.tasks[-1].prompt == "fox: "
    for task in (None, *(task.name for task in old.config.tasks)):
        np.testing.assert_allclose(
            new.encode(texts, task=task), old.encode(texts, task=task), atol=1e-6
        )
    assert np.abs(new.encode(texts, task="mine") - new.encode(texts)).max() > 1e-3
    assert "`mine`" in (tmp_path / "out/README.md").read_text()
    assert "# tiny" in (tmp_path / "out/README.md").read_text()
    assert (tmp_path / "out.run/run.png").stat().st_size > 10_000


def test_training_improves_the_score_and_the_loss(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", make_rows("classification", 200))
    outcome = make_adapter(
        compact_model, data, tmp_path / "out", options(epochs=16, learning_rate=0.02)
    )
    assert outcome.scores["mine"] > outcome.scores["none"] + 0.1
    lines = (tmp_path / "out.run/metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])


def test_a_second_task_is_added_to_the_first(compact_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.parquet", make_rows("scored"))
    make_adapter(compact_model, data, tmp_path / "one", options("scored"))
    again = options("scored", task="second", start="mine", held=0.0)
    outcome = make_adapter(tmp_path / "one", data, tmp_path / "two", again)
    assert (outcome.num_rows, outcome.num_held, outcome.scores) == (60, 0, {})
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
    assert choose_start(encoder, kind, rows, "") == "separation"


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
    assert outcome.scores["mine"] == pytest.approx(outcome.scores["separation"], abs=1e-6)


def test_a_killed_run_resumes_and_ends_with_the_same_weights(
    compact_model: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of training, and then the same command again."""
    data = write(tmp_path / "rows.parquet", make_rows("classification", 120))
    wanted = options(epochs=8)
    make_adapter(compact_model, data, tmp_path / "whole", wanted)
    command = (
        "from pathlib import Path; from polyvec.train.new_task import Options, make_adapter; "
        f"make_adapter(Path({str(compact_model)!r}), Path({str(data)!r}), "
        f"Path({str(tmp_path / 'cut')!r}), {wanted!r})"
    )
    with subprocess.Popen([sys.executable, "-c", command]) as run:
        try:
            written = tmp_path / "cut.run"
            wait_for(lambda: run.poll() is not None or [*written.glob("step-*/optimizer-1")])
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
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(
    changes: dict, part: str, compact_model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.csv", make_rows("classification", 12))
    with pytest.raises(ValueError, match=part):
        make_adapter(compact_model, data, tmp_path / "out", options(**changes))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


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


def test_no_text_is_on_both_sides_and_every_class_is_on_both() -> None:
    row_format = ROW_FORMATS["classification"]
    rows = [{"text": f"Text {i // 3}", "label": str(i // 3 % 4)} for i in range(300)]
    rows[1]["text"] = " text  0"
    seen, held = hold_out(rows, row_format, 0.2, seed=0)
    assert not {row_format.key(row) for row in seen} & {row_format.key(row) for row in held}
    assert len(seen) + len(held) == 300
    counts = np.unique([row["label"] for row in held], return_counts=True)[1]
    assert counts.tolist() == [15] * 4
    assert (
        hold_out(rows, row_format, 0.2, seed=0)
        == (seen, held)
        != hold_out(rows, row_format, 0.2, seed=1)
    )


def test_a_class_of_one_text_is_not_held_out() -> None:
    rows = [{"text": str(i), "label": "big"} for i in range(10)] + [{"text": "x", "label": "one"}]
    seen, held = hold_out(rows, ROW_FORMATS["classification"], 0.2, seed=0)
    assert rows[-1] in seen
    assert len(held) == 2


def test_a_bank_without_a_new_row_gets_zeros(tiny_config: ModelConfig) -> None:
    bank = np.ones((5, 2, 3), np.float32)
    task = Options(task="mine", kind="pairs").task
    weights: Weights = {"pooler.lora_a": bank, "layers.0.up.lora_a": bank, "x.weight": bank}
    from polyvec.tasks import Task

    config, grown = add_adapter(
        tiny_config, weights, Task(task), {"layers.0.up.lora_a": bank[0] * 2}
    )
    assert config.tasks[-1].name == "mine"
    assert (grown["pooler.lora_a"][5] == 0).all()
    assert (grown["layers.0.up.lora_a"][5] == 2).all()
    assert grown["x.weight"] is bank


def test_scores_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    table = {str(i): rng.normal(size=6).astype(np.float32) for i in range(60)}

    def encode(texts: list[str]) -> np.ndarray:
        vectors = np.stack([table[text] for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    pairs = [{"query": str(i), "positive": str(59 - i)} for i in range(30)]
    gains = []
    for row in pairs:
        cosines = sorted(
            (-float((encode([row["query"]]) @ encode([p["positive"]]).T)[0, 0]), p["positive"])
            for p in pairs
        )
        rank = [text for _, text in cosines].index(row["positive"])
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0)
    assert score_pairs(encode, [], pairs) == pytest.approx(np.mean(gains))
    scored = [{"text1": str(i), "text2": str(i + 30), "score": i % 7} for i in range(30)]
    assert -1 <= score_order(encode, [], scored) <= 1
    perfect = [
        {**row, "score": float(encode([row["text1"]])[0] @ encode([row["text2"]])[0])}
        for row in scored
    ]
    assert score_order(encode, [], perfect) == pytest.approx(1)
    classes = [{"text": str(i), "label": str(table[str(i)][0] > 0)} for i in range(60)]
    fitted = LogisticRegression(max_iter=1_000).fit(
        encode([row["text"] for row in classes[:40]]), [row["label"] for row in classes[:40]]
    )
    expected = fitted.score(
        encode([row["text"] for row in classes[40:]]), [row["label"] for row in classes[40:]]
    )
    assert score_classes(encode, classes[:40], classes[40:]) == pytest.approx(expected)


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
    code, out, err = polyvec("train", "adapter", *words, "--model", compact_model)
    assert code == 1, err
    assert f"left out {data}, line 42: text is empty" in err
    assert "left out 7 rows in all: see mails.run/bad-rows.jsonl" in err
    assert "34 rows trained on, starting from" in out
    assert "6 held out" in out
    assert "task=none" in out
    assert "task=mails" in out
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
