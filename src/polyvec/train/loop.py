"""The training loop. Stages differ in their `StepFn`, never in this file.

1. Resume from the newest checkpoint that is intact.
2. In each step, call the `StepFn` once or several times, clip the gradient, update, and record.
3. Skip the update if the loss or the gradient is not finite, and report it. Stop if the run
   diverges.
4. Every `save_every` steps, evaluate and write a checkpoint. Stop if the scores do not improve.

In several processes, every process runs this loop. PyTorch averages the gradients
(`train/distributed.py`), so all processes make the same updates. Only process 0 writes files.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from polyvec.terminal import note
from polyvec.train.checkpoints import load_weights, resume, save_checkpoint
from polyvec.train.distributed import barrier, full_tensor, num_processes, rank
from polyvec.train.divergence import Diverged, LossWatch
from polyvec.train.metrics import Metrics, read_records, summarise

logger = logging.getLogger(__name__)

StepFn = Callable[[int], tuple[Tensor, int]]
"""Add the gradient of step s to the parameters; return the loss, detached, and the token count.

In several processes, each computes its part; the loss and the count are those of all processes."""

SECONDS_BETWEEN_LINES = 60
"""Seconds between writes of the metrics, and between lines of progress where there is no bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the loop, the same for all stages."""

    steps: int
    """Number of updates in the whole run."""

    learning_rate: float
    """Peak learning rate of AdamW, for the dense parameters."""

    table_rate: float = 0.0
    """Peak learning rate of Adagrad, for the token tables."""

    muon_rate: float = 0.0
    """Peak learning rate of Muon, for the matrices that `muon` names, on AdamW's scale."""

    warmup: float = 0.05
    """Fraction of the run in which rates rise linearly from 0; they then fall linearly to 0."""

    weight_decay: float = 0.0
    """Weight decay of AdamW and Muon. It applies to matrices only."""

    clip: float = 1.0
    """Maximum norm of the dense gradient."""

    accumulate: int = 1
    """Calls of the `StepFn` per update, which uses the mean of their gradients. Call n of step s
    has the number s * accumulate + n."""

    save_every: int = 200
    """Number of steps between checkpoints, and between evaluations."""

    keep: int = 2
    """Number of checkpoints that stay on disk."""

    seed: int = 0
    """Seed of the run. Every step is seeded with it and its number, so no random state is saved."""

    tensorboard: bool = False
    """Whether to write TensorBoard's files, next to metrics.jsonl."""

    wandb: bool = False
    """Whether to send the metrics to Weights & Biases, which must be installed."""

    best: str = ""
    """Name of the score whose best checkpoint the run ends with. If empty, it is the last one."""

    patience: int = 0
    """Number of evaluations in a row without a better score, after which the run ends. With 0, it
    never ends early."""


def train(
    parameters: Iterable[tuple[str, nn.Parameter]],
    step_fn: StepFn,
    settings: Settings,
    folder: Path,
    *,
    tables: Iterable[str] = (),
    muon: Iterable[str] = (),
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> int:
    """Run `settings.steps` updates of the named parameters, and record the run in `folder`.

    `tables` names the parameters with one row per token, most of which a step does not use; their
    gradients may be sparse. `muon` names the matrices that Muon updates (Jordan et al. 2024);
    these should be matrices of the blocks, not embeddings. A run that was killed resumes from its
    last checkpoint and ends with exactly the weights of an uninterrupted run. Raises ValueError if
    `folder` contains a run with other settings, and `Diverged` if the loss explodes or is no longer
    finite; the last good checkpoint stays in the folder.

    Returns the step whose weights the parameters have at the end: the last one, or the best one if
    `settings.best` names a score.
    """
    named = dict(parameters)
    optimizers = _optimizers(named, {*tables}, {*muon}, settings)
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", settings)
    start = resume(folder, named, [optimizer for optimizer, _ in optimizers])
    first = rank() == 0
    metrics = None
    if first:
        metrics = Metrics(folder, start, tensorboard=settings.tensorboard, wandb=settings.wandb)
    barrier()
    dense = [parameter for name, parameter in named.items() if name not in {*tables}]
    scores = _read_scores(folder, settings.best, start)
    watch = LossWatch(folder, settings.steps, start)
    began_run = flushed = time.monotonic()
    with tqdm(
        total=settings.steps, initial=start, unit="step", disable=None if first else True
    ) as bar:
        for step in range(start, settings.steps):
            if _is_stalled(scores, settings.patience):
                break
            seed = settings.seed * 1_000_003 + step
            torch.manual_seed(seed * num_processes() + rank())
            rate = schedule(step, settings)
            for optimizer, peak in optimizers:
                optimizer.zero_grad(set_to_none=True)
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate
            began = time.perf_counter()
            loss, tokens = _gradient(step, step_fn, named.values(), settings.accumulate)
            norm = float(full_tensor(nn.utils.clip_grad_norm_(dense, settings.clip)))
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                # Without this, PyTorch warns that it does not check sparse gradients.
                with torch.sparse.check_sparse_tensor_invariants(False):
                    for optimizer, _ in optimizers:
                        optimizer.step()
            else:
                logger.warning("step %d skipped: loss %s, gradient norm %s", step, loss, norm)
            seconds = time.perf_counter() - began
            bar.set_postfix_str(f"loss {loss:.3f}, {tokens / seconds:,.0f} tokens/s")
            bar.update()
            done = step + 1
            if metrics is not None:
                record = {"loss": loss, "rate": rate, "tokens": tokens, "seconds": seconds}
                metrics.add(step, record if finite else record | {"skipped": 1})
                now = time.monotonic()
                if now - flushed > SECONDS_BETWEEN_LINES:
                    flushed = now
                    metrics.flush()
                    if not sys.stderr.isatty():
                        left = (now - began_run) / (done - start) * (settings.steps - done)
                        note(
                            f"step {done:,} of {settings.steps:,}, loss {loss:.3f}, "
                            f"about {left / 60:.0f} min left"
                        )
            try:
                watch.check(step, loss if finite else math.nan)
                # While steps are skipped, the weights may be bad, and are no good checkpoint.
                due = done % settings.save_every == 0 and not watch.skipped
                saves = due or done == settings.steps
                if saves and watch.skipped > 1:
                    raise watch.diverged(step, f"the last {watch.skipped} losses were not finite")
                if saves and not _all_finite(named.values()):
                    raise watch.diverged(step, "the weights are no longer finite")
            except Diverged:
                if metrics is not None:
                    metrics.flush()
                    metrics.close()
                raise
            if saves:
                found = {} if evaluate is None else evaluate()
                if settings.best:
                    scores[done] = found[settings.best]
                if metrics is not None:
                    if found:
                        metrics.add(step, found)
                    metrics.flush()
                kept = [optimizer for optimizer, _ in optimizers]
                best = _best_step(scores)
                save_checkpoint(folder, done, named, kept, keep=settings.keep, best=best)
    last = _best_step(scores) or settings.steps
    if scores:
        load_weights(folder / f"step-{last:08d}", named)
    if metrics is not None:
        metrics.close()
        summary = summarise(folder)
        if summary.skipped:
            logger.warning("%d of %d steps were skipped", summary.skipped, summary.steps)
    return last


def _all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    return all(bool(torch.isfinite(full_tensor(p.detach())).all()) for p in parameters)


def _read_scores(folder: Path, name: str, start: int) -> dict[int, float]:
    """The score of every checkpoint of a resumed run up to `start`, by its step."""
    if not name or not start:
        return {}
    records = read_records(folder / "metrics.jsonl")
    return {r["step"] + 1: r[name] for r in records if name in r and r["step"] < start}


def _best_step(scores: Mapping[int, float]) -> int | None:
    """The step of the best score; of equal ones the last, which has learnt most."""
    return max(scores, key=lambda step: (scores[step], step), default=None)


def _is_stalled(scores: Mapping[int, float], patience: int) -> bool:
    """Whether each of the last `patience` scores is below the best one before them."""
    best = _best_step(scores)
    return best is not None and 0 < patience <= sum(step > best for step in scores)


def schedule(step: int, settings: Settings) -> float:
    """Fraction of the peak rate at `step`: it rises linearly, then falls linearly."""
    rise = max(1, int(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    return (settings.steps - step) / max(1, settings.steps - rise)


def _gradient(
    step: int, step_fn: StepFn, parameters: Iterable[nn.Parameter], times: int
) -> tuple[float, int]:
    """Leave the mean gradient of a step's calls in the parameters; return loss and tokens."""
    results = [step_fn(step * times + part) for part in range(times)]
    if times > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(times)
    loss = sum(float(loss) for loss, _ in results) / times
    return loss, sum(tokens for _, tokens in results)


Optimizers = list[tuple[torch.optim.Optimizer, float]]
"""Each optimizer with its peak rate."""


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
    optimizers: Optimizers = [(adam, rate)]
    if tables:
        # Adam's momentum moves a rare row for many steps after its only gradient. Adagrad moves a
        # row only when a step used it, and less each time.
        rate = settings.table_rate
        rows = [named[name] for name in sorted(tables)]
        optimizers.append((torch.optim.Adagrad(rows, lr=rate), rate))
    if muon:
        rate = settings.muon_rate
        matrices = [named[name] for name in sorted(muon)]
        # Updates as large as AdamW's, so that one scale of rates serves both (Liu et al. 2025).
        optimizers.append(
            (
                torch.optim.Muon(
                    matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
                ),
                rate,
            )
        )
    return optimizers


def _check_settings(file: Path, settings: Settings) -> None:
    """Raise ValueError if `file` has other settings; a field that it lacks has its default."""
    if file.exists():
        defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
        if {**defaults, **json.loads(file.read_text())} != asdict(settings):
            raise ValueError(
                f"{file.parent} contains a run with other settings; choose another folder"
            )
    elif rank() == 0:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(asdict(settings), indent=1))
        part.replace(file)
    barrier()
