"""Complete runs: the debug recipe with models that other libraries read, and the paper's values."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, JinaEmbeddingsV3Model

from polyvec import Encoder
from polyvec.network import Network
from polyvec.train.metrics import read_records

# transformers warns about this when PEFT uses it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

ROOT = Path(__file__).parents[2]
TEXTS = ["The red fox sleeps in the forest.", "Der alte Bär schläft im Haus.", "sourdough"]


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of `polyvec train recipe recipes/debug.py`."""
    out = tmp_path_factory.mktemp("debug")
    recipe = ["train", "recipe", str(ROOT / "recipes/debug.py"), "--out", str(out)]
    run = subprocess.run([sys.executable, "-m", "polyvec", *recipe], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out


def test_every_stage_learns(debug: Path) -> None:
    for name in ("short", "long", "pairs", "retrieval", "classification"):
        records = read_records(debug / name / "metrics.jsonl")
        losses = [record["loss"] for record in records if "loss" in record]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]), name
        assert json.loads((debug / name / "summary.json").read_text())["skipped"] == 0
    # By chance one translation of 48 is found.
    assert read_records(debug / "pairs/metrics.jsonl")[-1]["translations"] > 25
    assert (debug / "pairs/run.png").exists()


def test_transformers_and_peft_read_the_model(debug: Path) -> None:
    encoder = Encoder.load(debug / "model", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(debug / "model")
    base = JinaEmbeddingsV3Model.from_pretrained(debug / "model").eval()
    for task in ("separation", "classification", "text-matching"):
        model = PeftModel.from_pretrained(
            base, str(debug / "model" / task.replace("-", "_")), adapter_name=task
        )
        model.set_adapter(task)
        for text, found in zip(TEXTS, encoder.encode(TEXTS, task=task), strict=True):
            with torch.no_grad():
                hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
            assert float(expected @ torch.tensor(found)) > 0.9999
        base = model.unload()


def test_sentence_transformers_reads_one_task(debug: Path) -> None:
    found = Encoder.load(debug / "model", device="cpu").encode(TEXTS, task="text-matching")
    model = SentenceTransformer(str(debug / "sentence"), device="cpu")
    expected = model.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose((found * expected).sum(1), 1.0, atol=1e-4)


def test_adapters_differ_from_the_backbone_and_from_one_another(debug: Path) -> None:
    encoder = Encoder.load(debug / "model", device="cpu")
    tasks = [None, *(task.name for task in encoder.config.tasks)]
    vectors = [encoder.encode(TEXTS, task=task) for task in tasks]
    for i, one in enumerate(vectors):
        assert all(not np.allclose(one, other, atol=1e-3) for other in vectors[:i])


def test_stage_3_does_not_change_the_backbone_or_other_adapters(debug: Path) -> None:
    runs = ["retrieval", "text-matching", "classification", "separation"]
    rows = {"retrieval": {0, 1}, "text-matching": {4}, "classification": {3}, "separation": {2}}
    ends = [load_file(max((debug / name).glob("step-*")) / "weights") for name in runs]
    assert all("lora" in name for name in ends[0])
    for before, after, name in zip(ends, ends[1:], runs[1:], strict=False):
        for key, tensor in after.items():
            moved = {row for row in range(5) if not torch.equal(tensor[row], before[key][row])}
            assert moved <= rows[name]
        assert any(not torch.equal(after[key], before[key]) for key in after)
    model = load_file(debug / "model/model.safetensors")
    last = load_file(max((debug / "pairs").glob("step-*")) / "weights")
    earlier = load_file(min((debug / "pairs").glob("step-*")) / "weights")
    # The model has the mean of the last two checkpoints of stage 2, which stage 3 did not change.
    for disk, ours in (
        ("emb_ln.weight", "embeddings.norm.weight"),
        ("encoder.layers.1.mlp.fc1.weight", "layers.1.up.weight"),
        ("embeddings.word_embeddings.weight", "embeddings.word.weight"),
    ):
        mean = ((last[ours].double() + earlier[ours]) / 2).float()
        assert torch.equal(model[disk], mean)


TABLE = """
short           8  100000  1024   512 1e-4 -
long            8   60000    64  8192 5e-5 -
pairs-short     8   60000 16384   192 3e-5 0.05
pairs-long      2   50000  1024  1024 2e-5 0.02
retrieval       1   20000   128   512 5e-4 0.05
text-matching   1   15000   256   192 1e-4 0.05
classification  1   11500   256   192 5e-4 0.02
separation      1   12500   512   192 5e-5 0.02
"""
"""arXiv:2409.10173, table A1."""


@pytest.fixture(scope="module")
def paper() -> dict:
    return runpy.run_path(str(ROOT / "recipes/jina_v3.py"))


def test_the_recipe_has_the_papers_values(paper: dict) -> None:
    rows = [line.split() for line in TABLE.strip().splitlines()]
    assert [row[0] for row in rows] == [*paper["RUNS"]]
    for name, *numbers in rows:
        run, settings = paper["RUNS"][name], paper["settings"](name)
        shown = [run.devices, run.steps, run.batch_size, run.max_tokens, run.rate, run.temperature]
        assert shown == [None if number == "-" else float(number) for number in numbers]
        assert (settings.steps, settings.learning_rate) == (run.steps, run.rate)
        # Other adapters' rows have no gradient, but a decay would still move them.
        assert (settings.weight_decay == 0) == (run.devices == 1)
    config = paper["CONFIG"]
    assert (config.width, config.num_layers, config.vocab_size) == (1024, 24, 250_002)
    assert config.rope_base == 10_000


def test_all_stages_of_the_paper_run_on_a_small_model(
    paper: dict, debug: Path, tmp_path: Path
) -> None:
    """Every stage takes two steps on a data folder in the documented format."""
    langs = ["en", "de"] * 12
    texts = [f"text {i} of the fox" for i in range(24)]
    others = [f"Satz {i} vom Hund" for i in range(24)]
    pairs = {"query": texts, "positive": others, "query_lang": langs}
    labelled = {"text": texts, "label": [i % 3 for i in range(24)], "lang": langs}
    files = {
        "text/a": {"text": texts, "lang": langs},
        "pairs/a": pairs,
        "long/a": pairs,
        "adapters/retrieval/a": {
            "query": texts,
            "positive": others,
            "lang": langs,
            "negatives": [others[:3]] * 24,
        },
        "adapters/text-matching/a": {
            "text1": texts,
            "text2": others,
            "lang": langs,
            "score": np.linspace(0, 1, 24),
        },
        "adapters/nli/a": {**pairs, "negatives": [texts[:1]] * 24},
        "adapters/classification/a": labelled,
        "adapters/separation/a": labelled,
    }
    for name, table in files.items():
        file = tmp_path / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), file)
    tokenizer = tokenizers.Tokenizer.from_file(str(debug / "tokenizer.json"))
    config = runpy.run_path(str(ROOT / "recipes/debug.py"))["CONFIG"]
    torch.manual_seed(0)
    network = Network(config, mlm=True)
    for name, stage in paper["STAGES"].items():
        run = paper["RUNS"][name]
        small = {**paper["RUNS"], name: paper["replace"](run, steps=2, batch_size=8, max_tokens=64)}
        stage.__globals__["RUNS"] = small
        step_fn = stage(network, tokenizer, tmp_path, name)
        for step in range(2):
            loss, tokens = step_fn(step)
            assert torch.isfinite(loss) and tokens > 0, name


def test_a_recipe_without_a_data_folder_says_how_to_get_data() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "POLYVEC_DATA"}
    command = [sys.executable, "-m", "polyvec", "train", "recipe", str(ROOT / "recipes/mini")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 2
    assert "pass --data FOLDER or set POLYVEC_DATA" in run.stderr
