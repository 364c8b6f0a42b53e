"""The training loop. Stages differ in what `work` does, never in this file.

1. Resume from the newest checkpoint that reads back whole.
2. Each step: `work` adds gradients, once or several times; clip; update; record.
3. A loss that is not finite changes nothing: the step is counted and reported.
4. Every so often: evaluate, and write a checkpoint beside the old one, then rename it into place.

In several processes all of them run this; gradients arrive averaged (`train/processes.py`), so
all make the same updates, and process 0 alone writes.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from polyvec.train.checkpoints import resume, save_checkpoint
from polyvec.train.distributed import num_processes, rank, wait, whole
from polyvec.train.metrics import Metrics, summarise

logger = logging.getLogger(__name__)

Work = Callable[[int], tuple[Tensor, int]]
"""Add the gradient of step s to the parameters; return its loss, detached, and its tokens.

In several processes each does its part, and the loss and the tokens are those of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train, whatever the stage."""

    steps: int
    """Updates in the whole run."""

    learning_rate: float
    """Peak rate of AdamW for the dense parameters."""

    table_rate: float = 0.0
    """Peak rate of Adagrad for the token tables."""

    muon_rate: float = 0.0
    """Peak rate of Muon for the matrices that are given to it, on AdamW's scale."""

    warmup: float = 0.05
    """Part of the run over which rates rise from 0; they then fall to 0 in a straight line."""

    weight_decay: float = 0.0
    """AdamW's and Muon's, on matrices only."""

    clip: float = 1.0
    """Largest norm of the dense gradient."""

    accumulate: int = 1
    """Calls of `work` an update: step s makes calls s * accumulate and following, and follows the
    mean of their gradients."""

    save_every: int = 200
    """Steps between checkpoints, and between evaluations."""

    keep: int = 2
    """Checkpoints that stay on disk."""

    seed: int = 0
    """Reseeded with the step number before every step, so no random state needs saving."""

    tensorboard: bool = False
    """Whether to write TensorBoard's files beside metrics.jsonl."""


def train(
    parameters: Iterable[tuple[str, nn.Parameter]],
    work: Work,
    settings: Settings,
    folder: Path,
    *,
    tables: Iterable[str] = (),
    muon: Iterable[str] = (),
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Run `settings.steps` updates on the named parameters; everything is recorded in `folder`.

    `tables` names the parameters with a row a token, most of which a step does not read; their
    gradients may be sparse. `muon` names the matrices that Muon updates (Jordan et al. 2024): of
    the blocks, not of embeddings. A run that was killed goes on from its last checkpoint and ends
    with the same bits as one that was not. Raises ValueError where `folder` holds a run with other
    settings.
    """
    named = dict(parameters)
    optimizers = _optimizers(named, {*tables}, {*muon}, settings)
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", settings)
    start = resume(folder, named, [optimizer for optimizer, _ in optimizers])
    first = rank() == 0
    metrics = Metrics(folder, start, tensorboard=settings.tensorboard) if first else None
    dense = [parameter for name, parameter in named.items() if name not in {*tables}]
    with tqdm(
        total=settings.steps, initial=start, unit="step", disable=None if first else True
    ) as bar:
        for step in range(start, settings.steps):
            seed = settings.seed * 1_000_003 + step
            torch.manual_seed(seed * num_processes() + rank())
            rate = schedule(step, settings)
            for optimizer, peak in optimizers:
                optimizer.zero_grad(set_to_none=True)
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate
            began = time.perf_counter()
            loss, tokens = _gradient(step, work, named.values(), settings.accumulate)
            norm = float(whole(nn.utils.clip_grad_norm_(dense, settings.clip)))
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                # Said outright: unsaid, PyTorch warns that it does not check sparse gradients.
                with torch.sparse.check_sparse_tensor_invariants(False):
                    for optimizer, _ in optimizers:
                        optimizer.step()
            else:
                logger.warning("step %d skipped: the loss is %s, its gradient %s", step, loss, norm)
            seconds = time.perf_counter() - began
            bar.set_postfix_str(f"loss {loss:.3f}, {tokens / seconds:,.0f} tokens/s")
            bar.update()
            if metrics is not None:
                record = {"loss": loss, "rate": rate, "tokens": tokens, "seconds": seconds}
                metrics.add(step, record if finite else record | {"skipped": 1})
            done = step + 1
            if done % settings.save_every == 0 or done == settings.steps:
                scores = {} if evaluate is None else evaluate()
                if metrics is not None:
                    if scores:
                        metrics.add(step, scores)
                    metrics.flush()
                kept = [optimizer for optimizer, _ in optimizers]
                save_checkpoint(folder, done, named, kept, keep=settings.keep)
    if metrics is not None:
        metrics.close()
        summary = summarise(folder)
        if summary.skipped:
            logger.warning("%d of %d steps were skipped", summary.skipped, summary.steps)


def schedule(step: int, settings: Settings) -> float:
    """The part of the peak rate at `step`: a straight rise, then a straight fall."""
    rise = max(1, int(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    return (settings.steps - step) / max(1, settings.steps - rise)


def _gradient(
    step: int, work: Work, parameters: Iterable[nn.Parameter], times: int
) -> tuple[float, int]:
    """The mean gradient of a step's calls of `work`, left in the parameters; loss and tokens."""
    results = [work(step * times + part) for part in range(times)]
    if times > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(times)
    loss = sum(float(loss) for loss, _ in results) / times
    return loss, sum(tokens for _, tokens in results)


Optimizers = list[tuple[torch.optim.Optimizer, float]]
"""Each with its peak rate."""


def _optimizers(
    named: dict[str, nn.Parameter], tables: set[str], muon: set[str], settings: Settings
) -> Optimizers:
    if unknown := (tables | muon) - named.keys():
        raise ValueError(f"{sorted(unknown)} are not among the parameters to train")
    dense = [parameter for name, parameter in named.items() if name not in tables | muon]
    decay = settings.weight_decay
    groups = [
        {"params": [p for p in dense if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in dense if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    found: Optimizers = [(adam, rate)]
    if tables:
        # Adam's momentum pushes a rare row on for many steps after its one gradient; Adagrad
        # moves a row only when it was read, and less each time.
        rate = settings.table_rate
        rows = [named[name] for name in sorted(tables)]
        found.append((torch.optim.Adagrad(rows, lr=rate), rate))
    if muon:
        rate = settings.muon_rate
        matrices = [named[name] for name in sorted(muon)]
        # Updates as large as AdamW's, so that one scale of rates serves both (Liu et al. 2025).
        found.append(
            (
                torch.optim.Muon(
                    matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
                ),
                rate,
            )
        )
    return found


def _check_settings(file: Path, settings: Settings) -> None:
    """Refuse a folder of other settings; a field younger than the file has its default there."""
    if file.exists():
        defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
        if {**defaults, **json.loads(file.read_text())} != asdict(settings):
            raise ValueError(f"{file.parent} holds a run with other settings; use another folder")
    elif rank() == 0:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(asdict(settings), indent=1))
        part.replace(file)
    wait()
