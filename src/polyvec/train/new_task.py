"""A task of the user's own: one new adapter beside those that a model has, in minutes on a CPU.

1. Read the rows; keep a part of them back, so that no text is on both sides.
2. Train one adapter behind the frozen model, in a network that has no other.
3. Append it to the model's bank and save: everything else stays as it was, to the bit.
4. Score the rows kept back: by the model as it was, and by the new task of the saved one.

Axes in this file: N texts, D width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

from polyvec.batch import pack
from polyvec.checkpoint import (
    Int8Matrix,
    Weights,
    detect_layout,
    load_checkpoint,
    save_checkpoint,
    save_compact,
    to_float,
)
from polyvec.checkpoint.peft import folder_names
from polyvec.config import ModelConfig
from polyvec.encoder import Encoder
from polyvec.engines.openvino_import import ov
from polyvec.network import Network
from polyvec.records import BadRow, read_rows
from polyvec.records import Record as Row
from polyvec.tasks import Task, adapter_index
from polyvec.tokenizer import Tokenizer
from polyvec.train.data.pairs import token_ids
from polyvec.train.data.streams import check_files
from polyvec.train.loop import Settings, Work, train
from polyvec.train.objectives import embed
from polyvec.train.plot import plot_run
from polyvec.train.row_formats import KINDS, Kind, Plan, Read

MOST_SCORED = 2_000
"""Rows of either side that a score looks at."""

NONE, BEST = "none", "best"
"""Names in the place of a task's: the bare encoder, and whatever turns out to be best."""

SAMPLE = 300
"""Rows by which the best start is chosen."""

CURVE_POINTS = 4
"""Scores taken during training, for the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a new adapter is trained."""

    task: str
    """The new task's name, for `encode(task=...)`."""

    kind: str
    """What the rows are: classification, pairs or scored (`polyvec.train.row_formats`)."""

    prompt: str = ""
    """An instruction put before every text of the task, in training and in use."""

    start: str = BEST
    """The task of the model whose adapter the new one starts from; "none" starts from nothing, and
    "best" from whichever of these serves a sample of the rows best."""

    epochs: int = 6
    """How often every row is read."""

    batch_size: int = 32
    """Rows in a step."""

    learning_rate: float = 5e-3
    """Peak rate of AdamW, and of Adagrad for the update of the token table."""

    max_tokens: int = 256
    """Longer texts are cut in training."""

    held: float = 0.2
    """The part of the rows that is kept back and scored; with 0 nothing is."""

    seed: int = 0
    """Decides which rows are kept back, their order, and the adapter's first numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a new adapter."""

    num_rows: int
    """Rows trained on."""

    num_held: int
    """Rows kept back."""

    bad_rows: tuple[BadRow, ...]
    """Rows left out."""

    start: str
    """The task started from, or "none"."""

    measure: str
    """What the scores are."""

    scores: dict[str, float]
    """On rows kept back, by task: "none", the task started from, the new one. Empty if none."""


def make_adapter(model: Path, data: Path, out: Path, options: Options) -> Outcome:
    """Write to `out` the model with one task more.

    Beside `out`, a folder of its name and `.run` records the training; a run that was killed goes
    on from there. Raises ValueError for a task the model has already, rows that cannot be used,
    and where that folder holds a run with other data or options.
    """
    kind = KINDS[options.kind]
    config, weights = load_checkpoint(model)
    _check_request(config, model, out, options)
    bad: list[BadRow] = []
    rows = list(read_rows(data, kind.columns, report=bad.append))
    if not rows:
        raise ValueError(f"{data} has no usable row" + (f"; the first: {bad[0]}" if bad else ""))
    kind.check(rows)
    seen, held = keep_back(rows, kind, options.held, options.seed)
    run = out.with_name(out.name + ".run")
    check_files(run / "data.json", [data])
    _check_options(run / "options.json", options)
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad]
    (run / "bad-rows.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = Tokenizer.load(model, config.max_tokens)
    before = Encoder.load(model)
    start = options.start
    if start == BEST:
        start = choose_start(before, kind, seen, options.prompt)
    scores = _score(before, [*{NONE: 0, start: 0}], kind, seen, held)
    # The largest thing in memory, and not needed while training.
    del before
    network = _network(config, weights, start, options)
    adapter = _train(network, tokenizer, seen, held, kind, run, options)
    grown, larger = add_adapter(config, weights, Task(options.task, options.prompt), adapter)
    files = {**tokenizer.files(), **_card(model, data, options)}
    save = save_compact if detect_layout(model) == "compact" else _save_native
    save(out, grown, larger, files=files)
    scores |= _score(Encoder.load(out), [options.task], kind, seen, held)
    outcome = Outcome(
        num_rows=len(seen),
        num_held=len(held),
        bad_rows=tuple(bad),
        start=start,
        measure=kind.measure,
        scores=scores,
    )
    (run / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1) + "\n")
    return outcome


def keep_back(
    rows: Sequence[Row], kind: Kind, part: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those kept back: `part` of the keys of every stratum, at random.

    Raises ValueError where nothing would be left to train on.
    """
    strata: dict[str, dict[str, None]] = {}
    owner: dict[str, str] = {}
    for row in rows:
        key = kind.key(row)
        strata.setdefault(owner.setdefault(key, kind.stratum(row)), {})[key] = None
    rng = np.random.default_rng(seed)
    back: set[str] = set()
    for stratum in sorted(strata):
        keys = list(strata[stratum])
        chosen = rng.permutation(len(keys))[: int(part * len(keys))]
        back |= {keys[i] for i in chosen}
    seen = [row for row in rows if kind.key(row) not in back]
    held = [row for row in rows if kind.key(row) in back]
    kind.check(seen)
    return seen, held


def choose_start(encoder: Encoder, kind: Kind, rows: Sequence[Row], prompt: str) -> str:
    """The task of a model that serves rows best as it is, or "none" for the bare encoder.

    Half of a sample is scored, by what the other half teaches. The first of equals is chosen, and
    no task that needs another instruction than `prompt`.
    """
    sample = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:SAMPLE]]
    try:
        kind.check(sample[::2])
    except ValueError:
        return NONE
    fitting = [task.name for task in encoder.config.tasks if task.prompt in ("", prompt)]
    scores = _score(encoder, [NONE, *fitting], kind, sample[::2], sample[1::2])
    return max(scores, key=scores.__getitem__, default=NONE)


def plan_epochs(num_rows: int, *, batch_size: int, epochs: int, seed: int) -> Plan:
    """The rows of every step: each row once an epoch, in a new order every time.

    >>> sorted(int(row) for rows in plan_epochs(5, batch_size=2, epochs=1, seed=0) for row in rows)
    [0, 1, 2, 3, 4]
    """
    rng = np.random.default_rng(seed)
    steps = max(1, round(num_rows / batch_size))
    return [
        part for _ in range(epochs) for part in np.array_split(rng.permutation(num_rows), steps)
    ]


def add_adapter(
    config: ModelConfig, weights: Weights, task: Task, adapter: Mapping[str, np.ndarray]
) -> tuple[ModelConfig, Weights]:
    """The model with one row more in every bank; nothing else changes, to the bit.

    `adapter` has the new row by the bank's name, rounded here to the bank's format; a bank it
    does not have (an unused pooler's) gets zeros.
    """
    grown: Weights = {}
    for name, weight in weights.items():
        if name.endswith((".lora_a", ".lora_b")):
            assert not isinstance(weight, Int8Matrix), "8-bit matrices have two axes"
            row = adapter.get(name, np.zeros(weight.shape[1:], np.float32))
            grown[name] = np.concatenate([weight, row[None].astype(weight.dtype)])
        else:
            grown[name] = weight
    return replace(config, tasks=(*config.tasks, task)), grown


def _check_request(config: ModelConfig, model: Path, out: Path, options: Options) -> None:
    if options.task in [task.name for task in config.tasks]:
        raise ValueError(f"the model has a task {options.task!r} already; choose another name")
    if options.task in (NONE, BEST):
        raise ValueError(f"a task cannot be called {options.task!r}; choose another name")
    # Names that no folder can have, or that another task's folder has.
    folder_names(replace(config, tasks=(*config.tasks, Task(options.task))))
    if options.start not in (NONE, BEST):
        adapter_index(config.tasks, options.start)
    if not 0 <= options.held < 1:
        raise ValueError(f"the part kept back is {options.held}, must be at least 0 and below 1")
    if options.epochs < 1 or options.batch_size < 2:
        raise ValueError("at least 1 epoch and 2 rows a step are needed")
    if out.resolve() == model.resolve():
        raise ValueError(f"{out} is the model that is added to; choose another folder")


def _check_options(file: Path, options: Options) -> None:
    text = json.dumps(asdict(options), indent=1) + "\n"
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{file.parent} holds a run with other options; choose another folder")
    file.write_text(text)


def _train(
    network: Network,
    tokenizer: Tokenizer,
    seen: Sequence[Row],
    held: Sequence[Row],
    kind: Kind,
    run: Path,
    options: Options,
) -> dict[str, np.ndarray]:
    longest = min(options.max_tokens, network.config.max_tokens)
    read = partial(_read, tokenizer, options.prompt, longest)
    plan = plan_epochs(
        len(seen), batch_size=options.batch_size, epochs=options.epochs, seed=options.seed
    )
    own = {name: p for name, p in network.named_parameters() if ".lora_" in name}
    for parameter in own.values():
        parameter.requires_grad_(True)
    work, more = kind.make_work(network, read, seen, plan)
    settings = Settings(
        steps=len(plan),
        learning_rate=options.learning_rate,
        table_rate=options.learning_rate,
        warmup=0.1,
        save_every=-(-len(plan) // CURVE_POINTS),
        seed=options.seed,
    )

    def evaluate() -> dict[str, float]:
        encode = partial(_encode, network, read)
        score = kind.score(encode, seen[:MOST_SCORED], held[:MOST_SCORED])
        return {kind.measure: score}

    train(
        {**own, **more}.items(),
        _in_bf16(work),
        settings,
        run,
        tables=["embeddings.word.lora_a"],
        evaluate=evaluate if held else None,
    )
    plot_run(run)
    return {name: parameter.detach()[0].numpy() for name, parameter in own.items()}


def _network(config: ModelConfig, weights: Weights, start: str, options: Options) -> Network:
    """The model with a bank of one adapter; it learns at the rotary base it will be used with."""
    torch.manual_seed(options.seed)
    network = Network(replace(config, tasks=(Task(options.task),))).requires_grad_(False)
    row = None if start == NONE else adapter_index(config.tasks, start)
    for name, parameter in network.named_parameters():
        if ".lora_" not in name:
            parameter.copy_(torch.tensor(to_float(weights[name])))
        elif row is not None:
            parameter.copy_(torch.tensor(to_float(weights[name])[row][None]))
    return network


def _read(tokenizer: Tokenizer, prompt: str, max_tokens: int, texts: list[str]) -> list[np.ndarray]:
    return token_ids(tokenizer.core, texts, max_tokens=max_tokens, prompt=prompt)


def _encode(network: Network, read: Read, texts: list[str]) -> Float32[np.ndarray, "N D"]:
    ids = read(texts)
    vectors = np.empty((len(ids), network.config.width), np.float32)
    for group in pack([len(text) for text in ids], max_tokens=8_192):
        with torch.inference_mode():
            found = embed(network, [ids[i] for i in group], 0)
            vectors[group] = F.normalize(found, dim=-1).numpy()
    return vectors


def _in_bf16(work: Work) -> Work:
    """The same work with matrix products in bf16 where the CPU has them: about half the time."""
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return work

    def cast(step: int) -> tuple[Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16):
            return work(step)

    return cast


def _score(
    encoder: Encoder,
    tasks: Sequence[str],
    kind: Kind,
    seen: Sequence[Row],
    held: Sequence[Row],
) -> dict[str, float]:
    """Each task's score; none where no rows were kept back."""
    scores = {}
    for name in tasks if held else []:
        encode = partial(encoder.encode, task=None if name == NONE else name)
        scores[name] = kind.score(encode, seen[:MOST_SCORED], held[:MOST_SCORED])
    return scores


def _save_native(
    folder: Path, config: ModelConfig, weights: Weights, *, files: Mapping[str, bytes]
) -> None:
    """Write the layout that transformers reads, in the format that loses nothing."""
    narrow = all(
        not isinstance(weight, Int8Matrix) and weight.dtype.name == "bfloat16"
        for weight in weights.values()
    )
    dtype = "bfloat16" if narrow else "float32"
    save_checkpoint(folder, config, weights, dtype=dtype, files=files)


def _card(model: Path, data: Path, options: Options) -> dict[str, bytes]:
    """A model card that says what was added, and under it the model's own."""
    base = model / "README.md"
    card = (
        f"# {options.task}\n\n"
        f"The model described below, with one adapter more: task `{options.task}`, trained by "
        f"`polyvec train adapter` on {data.name} (kind: {options.kind}).\n"
    )
    if base.is_file():
        card += "\n" + base.read_text(encoding="utf-8")
    return {"README.md": card.encode()}
