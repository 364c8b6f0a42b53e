"""Training of a new task's network on some rows, which ends with its best checkpoint.

Axes in this file: N texts, D width.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from polyvec.batch import pack
from polyvec.engines.openvino_import import ov
from polyvec.network import Network
from polyvec.records import Record
from polyvec.tokenizer import Tokenizer
from polyvec.train.data.batches import plan_epochs
from polyvec.train.data.tokens import TokenIds, tokenise
from polyvec.train.distributed import distribute, rank
from polyvec.train.estimate import make_folds
from polyvec.train.loop import Settings, train
from polyvec.train.objectives import embed
from polyvec.train.options import Options
from polyvec.train.plot import plot_run
from polyvec.train.row_formats import RowFormat, Tokenise

MAX_SCORED_ROWS = 2_000
"""Training rows, and held-out rows, that a score uses at most."""

MAX_VALIDATION_ROWS = 500
"""Training rows, and validation rows, that an evaluation during training uses at most."""

VALIDATION_SHARE = 0.1
"""Fraction of the rows that chooses the best checkpoint."""

MIN_VALIDATION_ROWS = 20
"""With fewer rows than this, the choice would be left to chance, so the last checkpoint is used."""

HEADS = ("sparse.", "multi_vector.", "mlm.")
"""Parts of a network that no new task trains."""

Item = TypeVar("Item")


class Fit(NamedTuple):
    """A trained network."""

    network: Network
    tokenise: Tokenise
    num_validation: int
    """Number of rows that chose the best checkpoint."""

    epoch: float
    """Number of epochs after which that checkpoint was written."""


def fit(
    network: Network,
    tokenizer: Tokenizer,
    rows: Sequence[Record],
    row_format: RowFormat,
    run: Path,
    options: Options,
) -> Fit:
    """Train the adapters of a network, or all of its weights, and record the run in a folder."""
    max_tokens = min(options.max_tokens, network.config.max_tokens)
    prompts = [task.prompt for task in network.config.tasks]
    tokenise_texts = partial(_tokenise, tokenizer, prompts, max_tokens)
    train_rows, validation = _split_validation(rows, row_format, options)
    plan = plan_epochs(
        len(train_rows), batch_size=options.batch_size, epochs=options.epochs, seed=options.seed
    )
    trained = {
        name: parameter
        for name, parameter in network.named_parameters()
        if ".lora_" in name or (options.full and not name.startswith(HEADS))
    }
    for parameter in trained.values():
        parameter.requires_grad_(True)
    step_fn, more = row_format.make_objective(
        distribute(network, "ddp"), tokenise_texts, train_rows, plan, options.loss
    )
    tables = [name for name in ("word.weight", "word.lora_a") if f"embeddings.{name}" in trained]
    measure, score = next(iter(row_format.measures.items()))
    known = draw(train_rows, MAX_VALIDATION_ROWS, seed=options.seed)
    steps_per_epoch = len(plan) // options.epochs

    def evaluate() -> dict[str, float]:
        own = partial(encode, network, tokenise_texts)
        return {measure: score(row_format.predict(own, known, validation))}

    network.precision = find_precision(network)
    best = train(
        {**trained, **more}.items(),
        step_fn,
        Settings(
            steps=len(plan),
            learning_rate=options.learning_rate,
            table_rate=options.learning_rate,
            warmup=0.1,
            save_every=steps_per_epoch,
            seed=options.seed,
            best=measure if validation else "",
            patience=options.patience if validation else 0,
            tensorboard=options.tensorboard,
            wandb=options.wandb,
        ),
        run,
        tables=[f"embeddings.{name}" for name in tables],
        evaluate=evaluate if validation else None,
    )
    if rank() == 0:
        plot_run(run)
    return Fit(network, tokenise_texts, len(validation), best / steps_per_epoch)


def encode(
    network: Network, tokenise_texts: Tokenise, texts: list[str], side: int
) -> Float32[np.ndarray, "N D"]:
    """Embeddings of texts with the task of a side, in float32."""
    ids = tokenise_texts(texts, side)
    vectors = np.empty((len(ids), network.config.width), np.float32)
    trained_in, network.precision = network.precision, torch.float32
    for group in pack([len(text) for text in ids], max_tokens=8_192):
        with torch.inference_mode():
            means = embed(network, [ids[i] for i in group], side)
            vectors[group] = F.normalize(means, dim=-1).cpu().numpy()
    network.precision = trained_in
    # An embedding that is not finite finds nothing.
    return np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)


def choose_device(name: str) -> torch.device:
    """The device of this name. Raises ValueError if there is none."""
    there = torch.cuda.is_available()
    if name == "auto":
        # Of several processes, each has a GPU of its own as the current one.
        return torch.device("cuda", torch.cuda.current_device()) if there else torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ValueError(f"device is {name!r}, must be cpu, cuda, cuda:N or auto")
    if kind == "cuda" and (not there or int(number or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count() if there else 0
        raise ValueError(f"there is no device {name!r}; this machine has {count} CUDA devices")
    return torch.device(name)


def find_precision(network: Network) -> torch.dtype:
    """The type of matrix products: bf16 if the device supports it, which halves the time."""
    if network.embeddings.word.weight.is_cuda:
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return torch.bfloat16 if fast else torch.float32


def draw(items: Sequence[Item], most: int, *, seed: int) -> list[Item]:
    """Some items at random, or all of them if there are no more than `most`."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))[:most]]


def _split_validation(
    rows: Sequence[Record], row_format: RowFormat, options: Options
) -> tuple[list[Record], list[Record]]:
    """The rows to train on, and those that choose the best checkpoint, if there are enough."""
    if not options.held:
        return list(rows), []
    chosen = {*make_folds(rows, row_format, VALIDATION_SHARE, options.seed + 1)[0].tolist()}
    validation = [row for i, row in enumerate(rows) if i in chosen]
    others = [row for i, row in enumerate(rows) if i not in chosen]
    try:
        row_format.check(others)
    except ValueError:
        return list(rows), []
    if len(validation) < MIN_VALIDATION_ROWS:
        return list(rows), []
    return others, draw(validation, MAX_VALIDATION_ROWS, seed=options.seed)


def _tokenise(
    tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int, texts: list[str], side: int
) -> TokenIds:
    return tokenise(tokenizer.core, texts, max_tokens=max_tokens, prompt=prompts[side])
