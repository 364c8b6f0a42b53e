"""A new task: one more adapter for a model, or its whole backbone, trained on the user's rows.

1. Read the rows. Leave out those that teach nothing.
2. Hold out one fold of the rows after another, train on the others, and score the fold with the
   original model and with the new task (`polyvec.train.estimate`).
3. Train on all rows, in a network that has only the new adapters. A tenth of the rows chooses the
   best checkpoint.
4. Put the adapters into the model's bank and save. All other weights remain bit for bit equal.

Axes in this file: N texts, D width.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from polyvec.checkpoint import (
    Weights,
    detect_layout,
    load_checkpoint,
    save_checkpoint,
    save_compact,
)
from polyvec.checkpoint.peft import folder_names
from polyvec.config import ModelConfig
from polyvec.encoder import Encoder
from polyvec.network import Network
from polyvec.records import BadRow, Record, read_files
from polyvec.rejected_rows import bad_row_line
from polyvec.tasks import PASSAGE, QUERY, Task, adapter_index
from polyvec.terminal import json_value, note
from polyvec.tokenizer import Tokenizer
from polyvec.train.bank import add_adapters, make_network, pad_rank, read_adapters, with_rank
from polyvec.train.data.shuffling import check_files
from polyvec.train.distributed import rank
from polyvec.train.estimate import (
    Estimate,
    Score,
    advise,
    choose_folds,
    find_warnings,
    make_folds,
)
from polyvec.train.fit import MAX_SCORED_ROWS, Fit, choose_device, draw, encode, fit
from polyvec.train.measures import Encode
from polyvec.train.metrics import read_records
from polyvec.train.options import BEST, NONE, Options
from polyvec.train.row_formats import CONTRAST, LOSSES, ROW_FORMATS, RowFormat, find_flaw

START_SAMPLE_ROWS = 300
"""Rows with which the best start is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of training a new task."""

    num_rows: int
    """Number of rows that can be used."""

    num_validation: int
    """Number of these rows that chose the best checkpoint; training used the others."""

    num_scored: int
    """Number of rows that were held out and scored, over all folds."""

    num_folds: int
    """Number of folds that were held out, one after another."""

    epoch: float
    """Number of epochs after which the best checkpoint was written."""

    bad_rows: tuple[BadRow, ...]
    """Rows that were left out because they are damaged."""

    blank_rows: tuple[BadRow, ...]
    """Rows that were left out because they lack what training needs, such as a label."""

    start: str
    """Task whose adapter the new one started from, or "none"."""

    scores: dict[str, dict[str, Score]]
    """Scores on held-out rows of each task: "none", the start, the new task. May be empty."""

    differences: dict[str, Score]
    """Each score of the new task less that of the start."""

    advice: str
    """One sentence: whether to use the new task."""

    warnings: tuple[str, ...]
    """Sentences on data or a run from which little can be expected."""


def make_adapter(model: Path, data: Path, out: Path, options: Options) -> Outcome:
    """Train a new task, and write the model with it to the folder `out`.

    A second folder, `out` with the suffix `.run`, records the training, and a run that was killed
    resumes from it. Several processes that torchrun started train together. Raises ValueError if
    the model already has the task, if the rows cannot be used, or if that folder contains a run
    with other data or options; raises `Diverged` if the loss explodes.
    """
    row_format = _choose_format(options)
    config, weights = load_checkpoint(model)
    tasks = new_tasks(config, options)
    _check_request(config, model, out, tasks, options)
    rows, bad, blank = read_training_rows(data, row_format, options)
    run = out.with_name(out.name + ".run")
    if rank() == 0:
        check_files(run / "data.json", [data])
        _check_options(run / "options.json", options)
        lines = [bad_row_line(row) for row in (*bad, *blank)]
        (run / "bad-rows.jsonl").write_text("".join(lines), encoding="utf-8")
    warnings = find_warnings(rows, options.kind)
    for warning in warnings:
        _note(f"warning: {warning}")

    before = Encoder.load(model)
    start = _choose_start(before, tasks, rows, row_format, options)
    starts = start_tasks(start, row_format)
    folds = _choose_folds(rows, row_format, options)
    estimate = Estimate(row_format.measures, held_share=options.held / (1 - options.held))
    for fold in folds:
        others, held_out = _split(rows, fold, options.seed)
        estimate.keys += [row_format.key(row) for row in held_out]
        for name in {NONE: 0, start: 0}:
            found = row_format.predict(_encode_with(before, name, row_format), others, held_out)
            estimate.add(name, found)
    # The encoder is the largest object in memory, and training does not need it.
    del before

    tokenizer = Tokenizer.load(model, config.max_tokens)
    device = choose_device(options.device)

    def train_on(some: Sequence[Record], folder: Path) -> Fit:
        network = make_network(
            config, weights, tasks, starts, rank=options.rank, seed=options.seed
        ).to(device)
        return fit(network, tokenizer, some, row_format, folder, options)

    for number, fold in enumerate(folds, 1):
        _note(f"training without fold {number} of {len(folds)}, to score it")
        seen = [row for i, row in enumerate(rows) if i not in {*fold.tolist()}]
        fitted = train_on(seen, run / f"fold-{number}")
        others, held_out = _split(rows, fold, options.seed)
        own = partial(encode, fitted.network, fitted.tokenise)
        estimate.add(options.task, row_format.predict(own, others, held_out))
        del fitted, own
    if folds:
        _note("training on all rows")
    fitted = train_on(rows, run)
    new_config, new_weights = _new_model(config, weights, tasks, fitted.network, options)
    files = {**tokenizer.files(), **_card(model, data, options)}
    if rank() == 0:
        compact = detect_layout(model) == "compact"
        save = save_compact if compact else partial(_save_native, weights)
        save(out, new_config, new_weights, files=files)

    differences = estimate.differences(options.task, start) if folds else {}
    outcome = Outcome(
        num_rows=len(rows),
        num_validation=fitted.num_validation,
        num_scored=estimate.num_rows,
        num_folds=len(folds),
        epoch=round(fitted.epoch, 2),
        bad_rows=tuple(bad),
        blank_rows=tuple(blank),
        start=start,
        scores=estimate.scores(),
        differences=differences,
        advice=advise(options.task, start, differences) if folds else "",
        warnings=(*warnings, *_check_loss(run)),
    )
    if rank() == 0:
        text = json.dumps(asdict(outcome), indent=1, default=json_value)
        (run / "outcome.json").write_text(text + "\n")
    return outcome


def read_training_rows(
    data: Path, row_format: RowFormat, options: Options
) -> tuple[list[Record], list[BadRow], list[BadRow]]:
    """The rows to learn from, the damaged rows, and the rows that lack what training needs.

    Raises ValueError if nothing can be learnt from the rows.
    """
    rows: list[Record] = []
    bad: list[BadRow] = []
    blank: list[BadRow] = []
    for row in read_files([data], row_format.columns, report=bad.append):
        if flaw := find_flaw(row.record, row_format, options.loss):
            blank.append(row.reject(flaw))
            continue
        if scores := row.record.get("scores"):
            row.record["scores"] = [options.teacher_scale * score for score in scores]
        rows.append(row.record)
    if not rows:
        first = [*bad, *blank][:1]
        raise ValueError(f"{data} has no usable row" + "".join(f"; the first: {b}" for b in first))
    row_format.check(rows)
    return rows, bad, blank


def new_tasks(config: ModelConfig, options: Options) -> tuple[Task, ...]:
    """The tasks that are trained, one for each side of the row format, with their instructions."""
    sides = ROW_FORMATS[options.kind].sides
    prompts: tuple[str | None, ...] = (options.prompt,)
    known = {task.name: task.prompt for task in config.tasks}
    defaults = [""]
    if len(sides) > 1:
        prompts = (options.query_prompt, options.prompt)
        defaults = [known.get(QUERY, ""), known.get(PASSAGE, "")]
    tasks = []
    for side, prompt, default in zip(sides, prompts, defaults, strict=True):
        name = options.task + side
        if options.update and prompt is None:
            default = known.get(name, default)
        tasks.append(Task(name, default if prompt is None else prompt))
    return tuple(tasks)


def start_tasks(start: str, row_format: RowFormat) -> tuple[str | None, ...]:
    """The task from whose adapter that of each side starts; None to start from zero."""
    return tuple(None if start == NONE else start + side for side in row_format.sides)


def choose_start(
    encoder: Encoder, row_format: RowFormat, rows: Sequence[Record], tasks: Sequence[Task]
) -> str:
    """The task of a model that scores best on the rows, or "none" for no adapter.

    One half of a sample is used as training rows and the other half as held-out rows. The first
    of equal tasks is chosen. Tasks with an instruction other than that of the new `tasks` are not
    considered.
    """
    sample = draw(rows, START_SAMPLE_ROWS, seed=0)
    try:
        row_format.check(sample[::2])
    except ValueError:
        return NONE
    known = {task.name: task.prompt for task in encoder.config.tasks}
    end = row_format.sides[0]
    names = [name.removesuffix(end) for name in known if name.endswith(end)]
    fitting = [
        name
        for name in names
        if all(
            known.get(name + side) in ("", task.prompt)
            for side, task in zip(row_format.sides, tasks, strict=True)
        )
    ]
    measure = next(iter(row_format.measures.values()))
    scores = {}
    for name in (NONE, *fitting):
        encode_with = _encode_with(encoder, name, row_format)
        scores[name] = measure(row_format.predict(encode_with, sample[::2], sample[1::2]))
    return max(scores, key=scores.__getitem__)


def _choose_start(
    encoder: Encoder,
    tasks: Sequence[Task],
    rows: Sequence[Record],
    row_format: RowFormat,
    options: Options,
) -> str:
    if options.update:
        return options.task
    if options.start == BEST:
        return choose_start(encoder, row_format, rows, tasks)
    return options.start


def _choose_format(options: Options) -> RowFormat:
    row_format = ROW_FORMATS[options.kind]
    columns = replace(row_format.columns, aliases=options.aliases(row_format))
    if options.loss not in LOSSES:
        raise ValueError(f"loss is {options.loss!r}, must be one of {', '.join(LOSSES)}")
    if options.loss != CONTRAST and "scores" not in columns.optional:
        raise ValueError(f"rows of the kind {options.kind} have no teacher's scores")
    if len(row_format.sides) == 1 and options.query_prompt is not None:
        raise ValueError("only --kind retrieval has a --query-prompt; use --prompt")
    return replace(row_format, columns=columns)


def _choose_folds(
    rows: Sequence[Record], row_format: RowFormat, options: Options
) -> list[np.ndarray]:
    if not options.held:
        return []
    folds = make_folds(rows, row_format, options.held, options.seed)
    chosen = choose_folds(folds, options.folds)
    try:
        for fold in chosen:
            row_format.check([row for i, row in enumerate(rows) if i not in {*fold.tolist()}])
    except ValueError:
        _note("warning: there are too few rows to hold out some of them, so nothing is scored")
        return []
    return chosen


def _split(
    rows: Sequence[Record], fold: np.ndarray, seed: int
) -> tuple[list[Record], list[Record]]:
    """The other rows and the rows of a fold, as many of both as a score uses at most."""
    held = {*fold.tolist()}
    others = [row for i, row in enumerate(rows) if i not in held]
    held_out = [rows[i] for i in fold]
    return (
        draw(others, MAX_SCORED_ROWS, seed=seed),
        draw(held_out, MAX_SCORED_ROWS, seed=seed),
    )


def _encode_with(encoder: Encoder, start: str, row_format: RowFormat) -> Encode:
    names = start_tasks(start, row_format)
    return lambda texts, side: encoder.encode(texts, task=names[side])


def _check_request(
    config: ModelConfig, model: Path, out: Path, tasks: Sequence[Task], options: Options
) -> None:
    known = [task.name for task in config.tasks]
    for task in tasks:
        if task.name in known and not options.update and not options.full:
            raise ValueError(
                f"the model already has a task {task.name!r}; choose another name, or train it "
                "further with --update"
            )
        if task.name not in known and options.update:
            adapter_index(config.tasks, task.name)
    if options.task in (NONE, BEST):
        raise ValueError(f"the name {options.task!r} is reserved; choose another name for the task")
    # Raises ValueError for a name that a folder cannot have or that another task's folder has.
    new = [task for task in tasks if task.name not in known]
    folder_names(replace(config, tasks=(*config.tasks, *new)))
    if options.start not in (NONE, BEST):
        for name in start_tasks(options.start, ROW_FORMATS[options.kind]):
            adapter_index(config.tasks, name)
    if options.rank is not None:
        with_rank(config, options.rank)
        if options.rank < config.adapter_rank and (options.update or options.start != NONE):
            raise ValueError(
                f"rank is {options.rank}, but the adapters to start from have rank "
                f"{config.adapter_rank}; use --start none for a lower rank"
            )
    if not 0 <= options.held < 1:
        raise ValueError(f"held is {options.held}; it must be at least 0 and below 1")
    if options.epochs < 1 or options.batch_size < 2 or options.folds < 1 or options.patience < 0:
        raise ValueError(
            "epochs and folds must be at least 1, batch_size at least 2, and patience at least 0"
        )
    if out.resolve() == model.resolve():
        raise ValueError(f"{out} is the folder of the original model; choose another folder")
    choose_device(options.device)


def _check_options(file: Path, options: Options) -> None:
    text = json.dumps(asdict(options), indent=1) + "\n"
    if file.exists() and file.read_text() != text:
        raise ValueError(
            f"{file.parent} contains a run with other options; remove it, or choose another folder"
        )
    file.write_text(text)


def _new_model(
    config: ModelConfig,
    weights: Weights,
    tasks: Sequence[Task],
    network: Network,
    options: Options,
) -> tuple[ModelConfig, Weights]:
    named = dict(network.named_parameters())
    if not options.full:
        return add_adapters(config, weights, tasks, read_adapters(named))
    # The heads and the other adapters belong to the old backbone.
    rank = network.config.adapter_rank
    new_config = replace(network.config, sparse_head=False, multi_vector_dim=0)
    new_weights: Weights = {}
    for name, weight in weights.items():
        if name.startswith(("sparse.", "multi_vector.")):
            continue
        if name in named:
            new_weights[name] = named[name].detach().cpu().numpy()
        elif ".lora_" in name:
            assert isinstance(weight, np.ndarray), "adapters are not quantised"
            bank = weight[:0] if rank < config.adapter_rank else pad_rank(name, weight, rank)[:0]
            new_weights[name] = np.zeros((len(tasks), *bank.shape[1:]), np.float32)
        else:
            new_weights[name] = weight
    return new_config, new_weights


def _save_native(
    old: Weights, folder: Path, config: ModelConfig, weights: Weights, *, files: Mapping[str, bytes]
) -> None:
    """Write the layout that transformers reads, in the number format of the old weights."""
    narrow = all(
        isinstance(weight, np.ndarray) and weight.dtype.name == "bfloat16"
        for weight in old.values()
    )
    dtype = "bfloat16" if narrow else "float32"
    save_checkpoint(folder, config, weights, dtype=dtype, files=files)


def _note(sentence: str) -> None:
    """Tell the user, once for all processes."""
    if rank() == 0:
        note(sentence)


def _check_loss(run: Path) -> list[str]:
    """A warning if the loss of a run did not fall."""
    losses = [r["loss"] for r in read_records(run / "metrics.jsonl") if "loss" in r]
    size = max(1, len(losses) // 10)
    first, last = statistics.median(losses[:size]), statistics.median(losses[-size:])
    if len(losses) < 10 or last < first:
        return []
    return [f"the loss did not fall ({first:.3f} to {last:.3f}): use a lower learning rate"]


def _card(model: Path, data: Path, options: Options) -> dict[str, bytes]:
    """A model card that describes the new task, followed by the original model's card."""
    base = model / "README.md"
    verb = "backbone" if options.full else "adapter"
    what = "with its whole backbone trained for" if options.full else "with one more adapter:"
    card = (
        f"# {options.task}\n\n"
        f"The model described below, {what} task `{options.task}`, trained by "
        f"`polyvec train {verb}` on {data.name} (kind: {options.kind}).\n"
    )
    if base.is_file():
        card += "\n" + base.read_text(encoding="utf-8")
    return {"README.md": card.encode()}
