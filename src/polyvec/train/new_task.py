"""A new task: one more adapter for a model, trained on the user's rows in minutes on a CPU.

1. Read the rows, and hold out a part of them so that no text is on both sides.
2. Train one adapter with the rest of the model frozen, in a network without other adapters.
3. Append the adapter to the model's bank and save. All other weights remain bit for bit equal.
4. Score the held-out rows with the original model and with the new task of the saved model.

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
from polyvec.records import BadRow, Record, read_rows
from polyvec.rejected_rows import bad_row_line
from polyvec.tasks import Task, adapter_index
from polyvec.terminal import json_value
from polyvec.tokenizer import Tokenizer
from polyvec.train.data.batches import plan_epochs
from polyvec.train.data.shuffling import check_files
from polyvec.train.data.tokens import tokenise
from polyvec.train.loop import Settings, StepFn, train
from polyvec.train.objectives import embed
from polyvec.train.plot import plot_run
from polyvec.train.row_formats import ROW_FORMATS, RowFormat, Tokenise

MAX_SCORED_ROWS = 2_000
"""Training rows, and held-out rows, that a score uses at most."""

NONE, BEST = "none", "best"
"""Reserved names: the encoder without an adapter, and the task that scores best."""

START_SAMPLE_ROWS = 300
"""Rows with which the best start is chosen."""

CURVE_POINTS = 4
"""Number of evaluations during training, for the plot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a new task."""

    task: str
    """Name of the new task, for `encode(task=...)`."""

    kind: str
    """Format of the rows: classification, pairs or scored (`polyvec.train.row_formats`)."""

    prompt: str = ""
    """An instruction that comes before every text of the task, in training and in use."""

    start: str = BEST
    """Task whose adapter the new adapter starts as a copy of. "none" starts from zero, and "best"
    starts from whichever of these scores best on a sample of the rows."""

    epochs: int = 6
    """Number of times that training uses every row."""

    batch_size: int = 32
    """Rows per step."""

    learning_rate: float = 5e-3
    """Peak learning rate of AdamW, and of Adagrad for the token table's part of the adapter."""

    max_tokens: int = 256
    """Maximum tokens of a text in training. Longer texts are cut."""

    held: float = 0.2
    """Fraction of the rows that is held out and scored. With 0, nothing is scored."""

    seed: int = 0
    """Seed for the held-out rows, the order of rows, and the adapter's initial weights."""

    text_column: str | None = None
    """Name of the column with the texts, or with the positives of pairs, if it is another one."""

    label_column: str | None = None
    """Name of the column with the labels or scores, if it is another one."""

    query_column: str | None = None
    """Name of the column with the queries of pairs, if it is another one."""

    def aliases(self, row_format: RowFormat) -> dict[str, str]:
        """The names that columns of a row format have in the data, where they differ.

        Raises ValueError for the name of a column that the format does not have.
        """
        aliases = {}
        for role in ("text", "label", "query"):
            name = getattr(self, f"{role}_column")
            if name is not None and role not in row_format.roles:
                raise ValueError(f"rows of the kind {self.kind} have no --{role}-column")
            if name is not None:
                aliases[row_format.roles[role]] = name
        return aliases


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of training a new task."""

    num_rows: int
    """Number of training rows."""

    num_held: int
    """Number of held-out rows."""

    bad_rows: tuple[BadRow, ...]
    """Rows that were skipped because they cannot be used."""

    start: str
    """Task whose adapter the new one started from, or "none"."""

    measure: str
    """Name of the score."""

    scores: dict[str, float]
    """Score on held-out rows of each task: "none", the start, the new task. Empty without rows."""


def make_adapter(model: Path, data: Path, out: Path, options: Options) -> Outcome:
    """Train a new task, and write the model with it to the folder `out`.

    A second folder, `out` with the suffix `.run`, records the training, and a run that was killed
    resumes from it. Raises ValueError if the model already has the task, if the rows cannot be
    used, or if that folder contains a run with other data or options.
    """
    row_format = ROW_FORMATS[options.kind]
    config, weights = load_checkpoint(model)
    _check_request(config, model, out, options)
    bad: list[BadRow] = []
    columns = replace(row_format.columns, aliases=options.aliases(row_format))
    rows = list(read_rows(data, columns, report=bad.append))
    if not rows:
        raise ValueError(f"{data} has no usable row" + (f"; the first: {bad[0]}" if bad else ""))
    row_format.check(rows)
    train_rows, held_out = hold_out(rows, row_format, options.held, options.seed)
    run = out.with_name(out.name + ".run")
    check_files(run / "data.json", [data])
    _check_options(run / "options.json", options)
    lines = [bad_row_line(row) for row in bad]
    (run / "bad-rows.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = Tokenizer.load(model, config.max_tokens)
    before = Encoder.load(model)
    start = options.start
    if start == BEST:
        start = choose_start(before, row_format, train_rows, options.prompt)
    scores = _score(before, [*{NONE: 0, start: 0}], row_format, train_rows, held_out)
    # The encoder is the largest object in memory, and training does not need it.
    del before
    network = _make_network(config, weights, start, options)
    adapter = _train(network, tokenizer, train_rows, held_out, row_format, run, options)
    task = Task(options.task, options.prompt)
    new_config, new_weights = add_adapter(config, weights, task, adapter)
    files = {**tokenizer.files(), **_card(model, data, options)}
    save = save_compact if detect_layout(model) == "compact" else _save_native
    save(out, new_config, new_weights, files=files)
    scores |= _score(Encoder.load(out), [options.task], row_format, train_rows, held_out)
    outcome = Outcome(
        num_rows=len(train_rows),
        num_held=len(held_out),
        bad_rows=tuple(bad),
        start=start,
        measure=row_format.measure,
        scores=scores,
    )
    text = json.dumps(asdict(outcome), indent=1, default=json_value)
    (run / "outcome.json").write_text(text + "\n")
    return outcome


def hold_out(
    rows: Sequence[Record], row_format: RowFormat, fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Split rows into training rows and held-out rows: `fraction` of the keys of every stratum.

    Raises ValueError if nothing can be learnt from the remaining training rows.
    """
    strata: dict[str, dict[str, None]] = {}
    owner: dict[str, str] = {}
    for row in rows:
        key = row_format.key(row)
        strata.setdefault(owner.setdefault(key, row_format.stratum(row)), {})[key] = None
    rng = np.random.default_rng(seed)
    held_keys: set[str] = set()
    for stratum in sorted(strata):
        keys = list(strata[stratum])
        chosen = rng.permutation(len(keys))[: int(fraction * len(keys))]
        held_keys |= {keys[i] for i in chosen}
    train_rows = [row for row in rows if row_format.key(row) not in held_keys]
    held_out = [row for row in rows if row_format.key(row) in held_keys]
    row_format.check(train_rows)
    return train_rows, held_out


def choose_start(
    encoder: Encoder, row_format: RowFormat, rows: Sequence[Record], prompt: str
) -> str:
    """The task of a model that scores best on the rows, or "none" for no adapter.

    One half of a sample is used as training rows and the other half as held-out rows. The first
    of equal tasks is chosen. Tasks with an instruction other than `prompt` are not considered.
    """
    sample = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:START_SAMPLE_ROWS]]
    try:
        row_format.check(sample[::2])
    except ValueError:
        return NONE
    fitting = [task.name for task in encoder.config.tasks if task.prompt in ("", prompt)]
    scores = _score(encoder, [NONE, *fitting], row_format, sample[::2], sample[1::2])
    return max(scores, key=scores.__getitem__, default=NONE)


def add_adapter(
    config: ModelConfig, weights: Weights, task: Task, adapter: Mapping[str, np.ndarray]
) -> tuple[ModelConfig, Weights]:
    """Append an adapter to every bank of the model; all other weights stay bit for bit equal.

    `adapter` has the new weights by the name of the bank. They are rounded to the bank's format.
    A bank without new weights (such as that of an unused pooler) gets zeros.
    """
    new_weights: Weights = {}
    for name, weight in weights.items():
        if name.endswith((".lora_a", ".lora_b")):
            assert isinstance(weight, np.ndarray), "adapters are not quantised"
            added = adapter.get(name, np.zeros(weight.shape[1:], np.float32))
            new_weights[name] = np.concatenate([weight, added[None].astype(weight.dtype)])
        else:
            new_weights[name] = weight
    return replace(config, tasks=(*config.tasks, task)), new_weights


def _check_request(config: ModelConfig, model: Path, out: Path, options: Options) -> None:
    if options.task in [task.name for task in config.tasks]:
        raise ValueError(f"the model already has a task {options.task!r}; choose another name")
    if options.task in (NONE, BEST):
        raise ValueError(f"the name {options.task!r} is reserved; choose another name for the task")
    # Raises ValueError for a name that a folder cannot have or that another task's folder has.
    folder_names(replace(config, tasks=(*config.tasks, Task(options.task))))
    if options.start not in (NONE, BEST):
        adapter_index(config.tasks, options.start)
    if not 0 <= options.held < 1:
        raise ValueError(f"held is {options.held}; it must be at least 0 and below 1")
    if options.epochs < 1 or options.batch_size < 2:
        raise ValueError("epochs must be at least 1, and batch_size at least 2")
    if out.resolve() == model.resolve():
        raise ValueError(f"{out} is the folder of the original model; choose another folder")


def _check_options(file: Path, options: Options) -> None:
    text = json.dumps(asdict(options), indent=1) + "\n"
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{file.parent} contains a run with other options; choose another folder")
    file.write_text(text)


def _train(
    network: Network,
    tokenizer: Tokenizer,
    train_rows: Sequence[Record],
    held_out: Sequence[Record],
    row_format: RowFormat,
    run: Path,
    options: Options,
) -> dict[str, np.ndarray]:
    max_tokens = min(options.max_tokens, network.config.max_tokens)
    tokenise_texts = partial(_tokenise, tokenizer, options.prompt, max_tokens)
    plan = plan_epochs(
        len(train_rows), batch_size=options.batch_size, epochs=options.epochs, seed=options.seed
    )
    own = {name: p for name, p in network.named_parameters() if ".lora_" in name}
    for parameter in own.values():
        parameter.requires_grad_(True)
    step_fn, more = row_format.make_objective(network, tokenise_texts, train_rows, plan)
    settings = Settings(
        steps=len(plan),
        learning_rate=options.learning_rate,
        table_rate=options.learning_rate,
        warmup=0.1,
        save_every=-(-len(plan) // CURVE_POINTS),
        seed=options.seed,
    )

    def evaluate() -> dict[str, float]:
        encode = partial(_encode, network, tokenise_texts)
        score = row_format.score(encode, train_rows[:MAX_SCORED_ROWS], held_out[:MAX_SCORED_ROWS])
        return {row_format.measure: score}

    train(
        {**own, **more}.items(),
        _in_bf16(step_fn),
        settings,
        run,
        tables=["embeddings.word.lora_a"],
        evaluate=evaluate if held_out else None,
    )
    plot_run(run)
    return {name: parameter.detach()[0].numpy() for name, parameter in own.items()}


def _make_network(config: ModelConfig, weights: Weights, start: str, options: Options) -> Network:
    """The model with a bank of one adapter, and with the rotary base of inference."""
    torch.manual_seed(options.seed)
    network = Network(replace(config, tasks=(Task(options.task),))).requires_grad_(False)
    source = None if start == NONE else adapter_index(config.tasks, start)
    for name, parameter in network.named_parameters():
        if ".lora_" not in name:
            parameter.copy_(torch.tensor(to_float(weights[name])))
        elif source is not None:
            parameter.copy_(torch.tensor(to_float(weights[name])[source][None]))
    return network


def _tokenise(
    tokenizer: Tokenizer, prompt: str, max_tokens: int, texts: list[str]
) -> list[np.ndarray]:
    return tokenise(tokenizer.core, texts, max_tokens=max_tokens, prompt=prompt)


def _encode(
    network: Network, tokenise_texts: Tokenise, texts: list[str]
) -> Float32[np.ndarray, "N D"]:
    ids = tokenise_texts(texts)
    vectors = np.empty((len(ids), network.config.width), np.float32)
    for group in pack([len(text) for text in ids], max_tokens=8_192):
        with torch.inference_mode():
            means = embed(network, [ids[i] for i in group], 0)
            vectors[group] = F.normalize(means, dim=-1).numpy()
    return vectors


def _in_bf16(step_fn: StepFn) -> StepFn:
    """`step_fn` with matrix products in bf16 if the CPU supports it, which halves the time."""
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return step_fn

    def cast(step: int) -> tuple[Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16):
            return step_fn(step)

    return cast


def _score(
    encoder: Encoder,
    tasks: Sequence[str],
    row_format: RowFormat,
    train_rows: Sequence[Record],
    held_out: Sequence[Record],
) -> dict[str, float]:
    """Score of each task on the held-out rows; empty if there are none."""
    scores = {}
    for name in tasks if held_out else []:
        encode = partial(encoder.encode, task=None if name == NONE else name)
        scores[name] = row_format.score(
            encode, train_rows[:MAX_SCORED_ROWS], held_out[:MAX_SCORED_ROWS]
        )
    return scores


def _save_native(
    folder: Path, config: ModelConfig, weights: Weights, *, files: Mapping[str, bytes]
) -> None:
    """Write the layout that transformers reads, in a number format that loses nothing."""
    narrow = all(
        isinstance(weight, np.ndarray) and weight.dtype.name == "bfloat16"
        for weight in weights.values()
    )
    dtype = "bfloat16" if narrow else "float32"
    save_checkpoint(folder, config, weights, dtype=dtype, files=files)


def _card(model: Path, data: Path, options: Options) -> dict[str, bytes]:
    """A model card that describes the new task, followed by the original model's card."""
    base = model / "README.md"
    card = (
        f"# {options.task}\n\n"
        f"The model described below, with one more adapter: task `{options.task}`, trained by "
        f"`polyvec train adapter` on {data.name} (kind: {options.kind}).\n"
    )
    if base.is_file():
        card += "\n" + base.read_text(encoding="utf-8")
    return {"README.md": card.encode()}
