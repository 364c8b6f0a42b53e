"""Two processes compared with one: equal gradients, equal runs, and one process that writes."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from polyvec.network import Network
from polyvec.train.distributed import distribute, full_tensor, process_group, rank, shard_texts
from polyvec.train.loop import Settings, train
from polyvec.train.metrics import read_records
from tests.train.test_objectives import RNG, STAGES, make_network

ROOT = Path(__file__).parents[2]

SETTINGS = Settings(steps=2, learning_rate=0.01, save_every=1, accumulate=1, weight_decay=0.1)


def trainable(network: Network, stage: str) -> list[tuple[str, torch.nn.Parameter]]:
    """Unfreeze a stage's parameters only. DDP waits for the gradient of every unfrozen one."""
    for key, parameter in network.named_parameters():
        head = "mlm" in key and stage != "masked-LM"
        bank = "lora" in key and stage.endswith(("masked-LM", "distillation"))
        parameter.requires_grad_(not head and not bank)
    return [(key, p) for key, p in network.named_parameters() if p.requires_grad]


def compute(how: Literal["ddp", "fsdp"], folder: Path) -> None:
    """Save each stage's gradient, at once and in chunks, and the weights after a short run."""
    folder.mkdir(exist_ok=True)
    for name, stage in STAGES.items():
        for most in (None, 60):
            network = make_network()
            trainable(network, name)
            RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
            loss, tokens = stage(distribute(network, how), most)(1)
            found = {
                key: full_tensor(p.grad)
                for key, p in network.named_parameters()
                if p.grad is not None
            }
            found |= {"loss": loss, "tokens": torch.tensor(tokens)}
            save_file(found, folder / f"{name}-{most}-{rank()}")
    network = make_network()
    trainable(network, "masked-LM")
    model = distribute(network, how)
    trained = trainable(network, "masked-LM")
    step_fn = STAGES["masked-LM"](model, None)
    train(trained, step_fn, SETTINGS, folder / "run")
    # The second call resumes at the end, and changes nothing.
    train(trained, step_fn, SETTINGS, folder / "run")
    save_file({key: full_tensor(p.detach()) for key, p in trained}, folder / f"end-{rank()}")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results of one process, and of two processes with DDP and with FSDP2."""
    folder = tmp_path_factory.mktemp("processes")
    compute("ddp", folder / "alone")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "tests.train.test_distributed", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("most", [None, 60])
def test_two_processes_compute_the_gradient_of_one(
    how: str, stage: str, most: int | None, found: Path
) -> None:
    alone = load_file(found / f"alone/{stage}-None-0")
    for number in range(2):
        mine = load_file(found / f"{how}/{stage}-{most}-{number}")
        assert mine.keys() == alone.keys()
        size = max(expected.norm().item() for key, expected in alone.items() if key != "tokens")
        for key, expected in alone.items():
            # Equal but for the rounding of float32, in which a gradient may be large.
            torch.testing.assert_close(mine[key], expected, rtol=1e-4, atol=1e-6 * max(1, size))


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does_and_one_of_them_writes(how: str, found: Path) -> None:
    alone, first, second = (
        load_file(found / name) for name in ("alone/end-0", f"{how}/end-0", f"{how}/end-1")
    )
    for key, expected in alone.items():
        assert torch.equal(first[key], second[key])
        # Adam divides by the gradient's size, so rounding shows where a gradient is nearly 0.
        assert F.cosine_similarity(first[key].flatten(), expected.flatten(), dim=0) > 0.9999, key
    saved = load_file(found / f"{how}/run/step-00000002/weights")
    assert all(torch.equal(saved[key], first[key]) for key in first)
    records = read_records(found / f"{how}/run/metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1]


def test_shards_have_every_text_once_and_similar_numbers_of_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("polyvec.train.distributed.num_processes", lambda: 3)
    lengths = np.random.default_rng(0).integers(2, 200, size=101).tolist()
    shares = shard_texts(lengths, chunk_tokens=500)
    assert sorted(i for share in shares for chunk in share for i in chunk) == [*range(101)]
    assert len({len(share) for share in shares}) == 1
    sizes = [sum(lengths[i] for i in chunk) for share in shares for chunk in share]
    assert max(sizes) <= 500 + 200
    with pytest.raises(ValueError, match="too small for 3 processes"):
        shard_texts([5, 5], chunk_tokens=None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group():
        compute("ddp", Path(sys.argv[1]) / "ddp")
        compute("fsdp", Path(sys.argv[1]) / "fsdp")
