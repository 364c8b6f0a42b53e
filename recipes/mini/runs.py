"""Training runs of adapters and heads, and the weights that finished runs left."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from polyvec.network import Network
from polyvec.train.loop import Settings, StepFn, train
from polyvec.train.plot import plot_run
from recipes.mini.config import ADAPTER_BUDGETS, ADAPTER_SCALES, CONFIG, PRECISION, Budget


def train_part(
    network: Network,
    words: Sequence[str],
    step_fn: StepFn,
    settings: Settings,
    run: Path,
    evaluate: Callable[[], dict[str, float]] | None,
) -> None:
    """Train the parameters whose names contain one of `words`. All others are frozen."""
    network.requires_grad_(False)
    network.precision = PRECISION
    learning = [(k, p) for k, p in network.named_parameters() if any(w in k for w in words)]
    for _, parameter in learning:
        parameter.requires_grad_(True)
    tables = [name for name, _ in learning if name == "embeddings.word.lora_a"]
    train(learning, step_fn, settings, run, tables=tables, evaluate=evaluate)
    plot_run(run)


def is_done(run: Path, budget: Budget) -> bool:
    """Whether a run has written its last checkpoint."""
    return (run / f"step-{budget.settings.steps:08d}").exists()


def newest(run: Path) -> Path:
    """Path of a run's last weights."""
    return max(run.glob("step-*")) / "weights"


def load_network(*runs: Path) -> Network:
    """A network with untrained adapters, and then the weights of finished runs."""
    torch.manual_seed(0)
    network = Network(CONFIG)
    for run in runs:
        network.load_state_dict({**network.state_dict(), **load_file(newest(run))})
    return network


def load_adapters(out: Path) -> Network:
    """The backbone with each adapter from its own run."""
    network = load_network(out / "backbone").requires_grad_(False)
    bank = dict(network.named_parameters())
    for name in ADAPTER_BUDGETS:
        trained = load_file(newest(out / "adapters" / name))
        for adapter_id, task in enumerate(CONFIG.tasks):
            if task.name.startswith(name):
                for key, tensor in trained.items():
                    scale = ADAPTER_SCALES.get(name, 1.0) if key.endswith("lora_b") else 1.0
                    bank[key][adapter_id] = scale * tensor[adapter_id]
    return network
