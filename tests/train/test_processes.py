"""Two processes on this machine against one: the same gradients, the same run, one writer."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from polyvec.network import Network
from polyvec.train.loop import Settings, train
from polyvec.train.processes import distribute, processes, rank, share_out, whole
from tests.train.test_stages import CONFIG, RNG, STAGES

SETTINGS = Settings(steps=2, learning_rate=0.01, save_every=1, accumulate=1, weight_decay=0.1)


def everything(how: str, folder: Path) -> None:
    """Each stage's gradient, in chunks and at once, and a whole run; what `torchrun` calls."""
    torch.set_num_threads(1)
    with processes():
        for name, stage in STAGES.items():
            for most in (None, 60):
                # A masked-LM head gets no gradient elsewhere, which DDP would wait for.
                torch.manual_seed(0)
                network = Network(CONFIG, mlm=True)
                bank = name in ("pairs", "ordering", "separation")
                for key, parameter in network.named_parameters():
                    used = "mlm" not in key if bank else "lora" not in key
                    parameter.requires_grad_(used and ("mlm" not in key or name == "masked-LM"))
                RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
                model = distribute(network, how)
                loss, tokens = stage(model, most)(1)
                found = {
                    key: whole(parameter.grad)
                    for key, parameter in network.named_parameters()
                    if parameter.grad is not None
                }
                found["loss"], found["tokens"] = loss, torch.tensor(tokens)
                save_file(found, folder / f"{name}-{most}-{rank()}")
        network = Network(CONFIG).requires_grad_(False)
        for key, parameter in network.named_parameters():
            parameter.requires_grad_("lora" not in key)
        model = distribute(network, how)
        trained = [(key, p) for key, p in network.named_parameters() if p.requires_grad]
        work = STAGES["distillation"](model, None)
        train(trained, work, SETTINGS, folder / "run")
        # The second call resumes at the end, and changes nothing.
        train(trained, work, SETTINGS, folder / "run")
        save_file({key: whole(p.detach()) for key, p in trained}, folder / f"end-{rank()}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process computes."""
    folder = tmp_path_factory.mktemp("alone")
    everything("ddp", folder)
    return folder


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(how: str, alone: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [__file__, how, str(tmp_path)]
    run = subprocess.run(launch + script, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for name in STAGES:
        for most in (None, 60):
            one = load_file(alone / f"{name}-None-0")
            for number in range(2):
                two = load_file(tmp_path / f"{name}-{most}-{number}")
                assert one.keys() == two.keys()
                for key, expected in one.items():
                    torch.testing.assert_close(two[key], expected, rtol=1e-4, atol=2e-6)
    ends = [
        load_file(folder) for folder in (alone / "end-0", tmp_path / "end-0", tmp_path / "end-1")
    ]
    for key, expected in ends[0].items():
        assert torch.equal(ends[1][key], ends[2][key])
        torch.testing.assert_close(ends[1][key], expected, rtol=1e-3, atol=1e-3)
    # One record a step, one checkpoint a name, whoever else was there.
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == SETTINGS.steps
    files = sorted(path.name for path in (tmp_path / "run/step-00000002").iterdir())
    assert files == ["optimizer-0", "weights"]


def test_a_share_has_every_text_once_and_like_amounts_of_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("polyvec.train.processes.num_processes", lambda: 3)
    lengths = np.random.default_rng(0).integers(2, 200, size=101).tolist()
    shares = share_out(lengths, max_tokens=500)
    assert sorted(i for share in shares for chunk in share for i in chunk) == [*range(101)]
    assert len({len(share) for share in shares}) == 1
    sizes = [sum(lengths[i] for i in chunk) for share in shares for chunk in share]
    assert max(sizes) <= 500 + 200
    with pytest.raises(ValueError, match="too small for 3 processes"):
        share_out([5, 5], max_tokens=None)


if __name__ == "__main__":
    everything(sys.argv[1], Path(sys.argv[2]))
