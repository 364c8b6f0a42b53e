"""The same scores from polyvec's encoder, from a running server, and from transformers and PEFT."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peft
import pytest
import tokenizers
import torch
import transformers
from jaxtyping import Float32

from polyvec import Encoder
from polyvec.eval import MtebEncoder, evaluate, load_model, local_tasks
from polyvec.eval.baselines import model_meta
from polyvec.eval.models import encoder_embed, encoder_meta
from polyvec.eval.results import TaskScore
from polyvec.tasks import TASKS
from tests.eval.synthetic import retrieval_folder, sts_folder
from tests.processes import start_server

# What transformers says when PEFT asks it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

FOLDERS = {task.name: task.name.replace("-", "_").replace(".", "_") for task in TASKS}
PROMPTS = {task.name: task.prompt for task in TASKS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, which three adapters read."""
    root = tmp_path_factory.mktemp("data")
    sts_folder(root)
    retrieval_folder(root)
    return root


def scores(model: object, data: Path, results: Path) -> dict[str, TaskScore]:
    tasks = local_tasks(data, whole=True)
    return evaluate(model, tasks, results=results, progress=False).tasks


@pytest.fixture(scope="module")
def ours(data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The library's scores, in float32: the tiny model's texts are too alike for less."""
    encoder = Encoder.load(tiny_model, device="cpu", precision="float32")
    model = MtebEncoder(encoder_embed(encoder), encoder_meta(str(tiny_model)))
    return scores(model, data, tmp_path_factory.mktemp("ours"))


@pytest.fixture
def server(tiny_model: Path) -> Iterator[str]:
    """The address of `polyvec serve`, in a process of its own."""
    process, url = start_server(str(tiny_model), "--device", "cpu", "--precision", "float32")
    with process:
        yield f"{url}/v1"
        process.terminate()


def test_a_running_server_scores_as_the_library(
    server: str, ours: dict, data: Path, tmp_path: Path
) -> None:
    served = scores(load_model(server), data, tmp_path)
    assert served.keys() == ours.keys() == {"sts", "retrieval"}
    for name, task in ours.items():
        assert served[name].score.value == pytest.approx(task.score.value, abs=1e-4)


def test_transformers_and_peft_by_hand_score_as_the_library(
    tiny_model: Path, tokenizer_file: Path, ours: dict, data: Path, tmp_path: Path
) -> None:
    base = transformers.JinaEmbeddingsV3Model.from_pretrained(tiny_model)
    first, *others = FOLDERS.values()
    network = peft.PeftModel.from_pretrained(base, tiny_model / first, adapter_name=first)
    for name in others:
        network.load_adapter(tiny_model / name, adapter_name=name)
    network.eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(64)

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        assert adapter is not None
        network.set_adapter(FOLDERS[adapter])
        ids = [tokenizer.encode(PROMPTS[adapter] + text).ids for text in texts]
        with torch.no_grad():
            means = [network(torch.tensor([row])).last_hidden_state[0].mean(0) for row in ids]
        return torch.nn.functional.normalize(torch.stack(means)).numpy()

    by_hand = scores(MtebEncoder(embed, model_meta("by-hand", "1")), data, tmp_path)
    for name, task in ours.items():
        assert by_hand[name].score.value == pytest.approx(task.score.value, abs=1e-4)
