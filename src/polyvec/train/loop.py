"""The training loop. Stages differ in what `work` does, never in this file.

1. Resume from the newest checkpoint that reads back whole.
2. Each step: `work(step)` adds the step's gradient; clip; update; record.
3. A loss that is not finite changes nothing: the step is counted and reported.
4. Every so often: evaluate, and write a checkpoint beside the old one, then rename it into place.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

logger = logging.getLogger(__name__)

Work = Callable[[int], tuple[Tensor, int]]
"""Add the gradient of step s to the parameters; return its loss, detached, and its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train, whatever the stage."""

    steps: int
    """Updates in the whole run."""

    learning_rate: float
    """Peak rate of AdamW for the dense parameters."""

    table_rate: float = 0.0
    """Peak rate of Adagrad for the token tables."""

    warmup: float = 0.05
    """Part of the run over which rates rise from 0; they then fall to 0 in a straight line."""

    weight_decay: float = 0.0
    """AdamW's, on matrices only."""

    clip: float = 1.0
    """Largest norm of the dense gradient."""

    save_every: int = 200
    """Steps between checkpoints, and between evaluations."""

    keep: int = 2
    """Checkpoints that stay on disk."""

    seed: int = 0
    """Reseeded with the step number before every step, so no random state needs saving."""


def train(
    parameters: Iterable[tuple[str, nn.Parameter]],
    work: Work,
    settings: Settings,
    folder: Path,
    *,
    tables: Iterable[str] = (),
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Run `settings.steps` updates on the named parameters; everything is recorded in `folder`.

    `tables` names the parameters with a row a token, most of which a step does not read; their
    gradients may be sparse. A run that was killed goes on from its last checkpoint and ends with
    the same bits as one that was not. Raises ValueError where `folder` holds a run with other
    settings.
    """
    named = dict(parameters)
    optimizers = _optimizers(named, {*tables}, settings)
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", settings)
    start = _resume(folder, named, optimizers)
    metrics = Metrics(folder / "metrics.jsonl", start)
    dense = [parameter for name, parameter in named.items() if name not in {*tables}]
    skipped = 0
    with tqdm(total=settings.steps, initial=start, unit="step", disable=None) as bar:
        for step in range(start, settings.steps):
            torch.manual_seed(settings.seed * 1_000_003 + step)
            rate = schedule(step, settings)
            for optimizer, peak in optimizers:
                optimizer.zero_grad(set_to_none=True)
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate
            began = time.perf_counter()
            loss, tokens = work(step)
            norm = nn.utils.clip_grad_norm_(dense, settings.clip)
            if math.isfinite(loss) and math.isfinite(norm):
                # Said outright: unsaid, PyTorch warns that it does not check sparse gradients.
                with torch.sparse.check_sparse_tensor_invariants(False):
                    for optimizer, _ in optimizers:
                        optimizer.step()
            else:
                skipped += 1
                logger.warning("step %d skipped: the loss is %s, its gradient %s", step, loss, norm)
            seconds = time.perf_counter() - began
            record = {"loss": float(loss), "rate": rate, "tokens": tokens, "seconds": seconds}
            metrics.add(step, record)
            bar.set_postfix_str(f"loss {loss:.3f}, {tokens / seconds:,.0f} tokens/s")
            bar.update()
            done = step + 1
            if done % settings.save_every == 0 or done == settings.steps:
                if evaluate is not None:
                    metrics.add(step, evaluate())
                metrics.flush()
                _save(folder, done, named, optimizers, settings.keep)
    if skipped:
        logger.warning("%d of %d steps were skipped", skipped, settings.steps - start)


def schedule(step: int, settings: Settings) -> float:
    """The part of the peak rate at `step`: a straight rise, then a straight fall."""
    rise = max(1, int(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    return (settings.steps - step) / max(1, settings.steps - rise)


class Metrics:
    """Lines of JSON, one a record; a resumed run first drops what it is about to repeat."""

    def __init__(self, file: Path, start: int) -> None:
        self.file = file
        self.lines: list[str] = []
        if file.exists():
            records = [json.loads(line) for line in file.read_text().splitlines()]
            kept = [json.dumps(record) for record in records if record["step"] < start]
            file.write_text("".join(line + "\n" for line in kept))

    def add(self, step: int, values: Mapping[str, float | int]) -> None:
        """Remember a record; it reaches the disk with the next checkpoint."""
        self.lines.append(json.dumps({"step": step, **values}))

    def flush(self) -> None:
        """Append what was remembered to the file."""
        with self.file.open("a") as out:
            out.write("".join(line + "\n" for line in self.lines))
        self.lines.clear()


Optimizers = list[tuple[torch.optim.Optimizer, float]]


def _optimizers(named: dict[str, nn.Parameter], tables: set[str], settings: Settings) -> Optimizers:
    dense = [parameter for name, parameter in named.items() if name not in tables]
    groups = [
        {"params": [p for p in dense if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in dense if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    found: Optimizers = [(torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98)), rate)]
    if tables:
        # Adam's momentum pushes a rare row on for many steps after its one gradient; Adagrad
        # moves a row only when it was read, and less each time.
        rate = settings.table_rate
        rows = [named[name] for name in sorted(tables)]
        found.append((torch.optim.Adagrad(rows, lr=rate), rate))
    return found


def _check_settings(file: Path, settings: Settings) -> None:
    text = json.dumps(asdict(settings), indent=1)
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{file.parent} holds a run with other settings; use another folder")
    file.write_text(text)


def _save(
    folder: Path, step: int, named: dict[str, nn.Parameter], optimizers: Optimizers, keep: int
) -> None:
    """Write everything into a new folder and rename it: a reader sees all of it or none."""
    part, whole = folder / "writing", folder / f"step-{step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    save_file({name: p.detach().contiguous() for name, p in named.items()}, part / "weights")
    for number, (optimizer, _) in enumerate(optimizers):
        state = optimizer.state_dict()["state"]
        flat = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
        save_file(flat, part / f"optimizer-{number}")
    shutil.rmtree(whole, ignore_errors=True)
    part.rename(whole)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def _resume(folder: Path, named: dict[str, nn.Parameter], optimizers: Optimizers) -> int:
    """Load the newest checkpoint that is whole; 0 where there is none."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            weights = load_file(checkpoint / "weights")
            flats = [load_file(checkpoint / f"optimizer-{n}") for n in range(len(optimizers))]
        except (SafetensorError, OSError) as fault:
            logger.warning("%s is damaged (%s); trying the one before", checkpoint, fault)
            continue
        if weights.keys() != named.keys():
            other = sorted(weights.keys() ^ named.keys())
            raise ValueError(f"{checkpoint} trains other parameters: {other}")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(weights[name])
        for (optimizer, _), flat in zip(optimizers, flats, strict=True):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in flat.items():
                number, name = key.split(".", 1)
                state.setdefault(int(number), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return int(checkpoint.name.removeprefix("step-"))
    return 0
