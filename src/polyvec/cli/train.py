"""`polyvec train`: run training recipes, add tasks to models, and make data to train on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from polyvec.terminal import ExitStatus, note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polyvec.train.estimate import Score
    from polyvec.train.options import Options

MAX_BAD_ROWS_SHOWN = 5
"""Bad rows that the terminal names; the folder of the run has all of them."""

Kind = Literal["classification", "pairs", "retrieval", "scored"]

LossName = Literal["contrast", "kl", "margin-mse"]

train = App(name="train", help="Train models, add tasks to them, and make data to train on.")


@train.command
def recipe(
    file: Annotated[Path, Parameter(name="RECIPE")],
    /,
    *options: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> None:
    """Run a training recipe.

    A recipe is a Python file. It runs with your rights, as any program does, so run only recipes
    that you trust. To train in several processes, start the file with torchrun.

    polyvec train recipe recipes/debug.py --out runs/debug

    Parameters
    ----------
    file
        The Python file, for example one in recipes/.
    options
        Options of the recipe itself. Its docstring describes them.

    """
    from polyvec.train.recipe import run_recipe

    run_recipe(file, options)


@train.command
def adapter(
    *,
    data: Path,
    task: str,
    kind: Kind,
    text_column: str | None = None,
    label_column: str | None = None,
    query_column: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    prompt: str | None = None,
    query_prompt: str | None = None,
    update: bool = False,
    start: str = "best",
    rank: int | None = None,
    loss: LossName = "contrast",
    teacher_scale: float = 1.0,
    epochs: int = 6,
    patience: int = 3,
    batch_size: int = 32,
    learning_rate: float = 5e-3,
    max_tokens: int = 256,
    held: float = 0.2,
    folds: int = 5,
    seed: int = 0,
    device: str = "auto",
    tensorboard: bool = False,
    wandb: bool = False,
) -> ExitStatus:
    """Add a task of your own to a model by training one new adapter.

    The other weights of the model do not change. The folder OUT.run keeps the record of the
    training: metrics.jsonl, run.png, bad-rows.jsonl and outcome.json. If the command is killed,
    the same command continues where it stopped. Rows without a text or a label are left out. The
    exit status is 1 if damaged rows were left out.

    polyvec train adapter --data mails.csv --task mails --kind classification --out my-model

    Parameters
    ----------
    data
        A .parquet, .csv, .tsv, .jsonl, .ndjson or .json file. For classification it has the columns
        text and label. For pairs and retrieval it has the columns query and positive, and
        optionally negatives (texts that resemble the positive), group, and scores (a teacher's, of
        the positive and of each negative). For scored it has the columns text1, text2 and score.
    task
        The name of the new task, as in encode(texts, task="mails"). Retrieval makes two tasks,
        NAME.query and NAME.passage.
    kind
        The kind of rows in the data.
    text_column
        The name of the column text, or for pairs of the column positive, if it has another name.
    label_column
        The name of the column label, or for scored of the column score, if it has another name.
    query_column
        The name of the column query of pairs, if it has another name.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    out
        The folder for the new model. The default is a folder with the name of the task.
    prompt
        An instruction that is put before every text of this task, in training and in use. For
        retrieval it is that of the passages, and the default is the model's own.
    query_prompt
        The instruction that is put before every query. Only for retrieval; the default is the
        model's own.
    update
        Train a task further that the model has already.
    start
        The task whose adapter the new adapter starts from. "none" starts from zero. "best" tries
        each task on a sample of the rows and takes the best one. For retrieval, "retrieval" means
        retrieval.query and retrieval.passage.
    rank
        The rank of the new adapter. The default is that of the model's adapters.
    loss
        For pairs and retrieval: contrast compares a query with all positives of a step. kl and
        margin-mse learn from a teacher's scores.
    teacher_scale
        The factor of a teacher's scores: 1 for the logits of a cross-encoder, 20 for cosines.
    epochs
        How often every row is used.
    patience
        Training ends after this many epochs in a row without a better score. With 0, it never ends
        early.
    batch_size
        How many rows one training step uses.
    learning_rate
        The highest learning rate. It is reached after a tenth of the run.
    max_tokens
        The length in tokens at which texts are cut in training.
    held
        The share of the rows that is held out at a time to score the model without and with the new
        task. A tenth of the other rows chooses the best checkpoint. With 0, all rows are used for
        training, and there are no scores.
    folds
        How often other rows are held out, at most. Each time, an adapter is trained without them.
        One time is enough if it scores 1,000 rows. The model that is written learns from all rows.
    seed
        The seed of every random choice: the rows that are held out, the order of the rows, and the
        first weights of the adapter.
    device
        The device that trains: cpu, cuda, cuda:1, or auto, which is the GPU if there is one.
    tensorboard
        Write the metrics for TensorBoard, too, in OUT.run/tensorboard.
    wandb
        Send the metrics to Weights & Biases, too. It must be installed.

    """
    from polyvec.train.options import Options

    options = Options(
        task=task,
        kind=kind,
        prompt=prompt,
        query_prompt=query_prompt,
        update=update,
        start=start,
        rank=rank,
        loss=loss,
        teacher_scale=teacher_scale,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        held=held,
        folds=folds,
        seed=seed,
        device=device,
        text_column=text_column,
        label_column=label_column,
        query_column=query_column,
        tensorboard=tensorboard,
        wandb=wandb,
    )
    return _train_task(model, data, out or Path(task), options)


@train.command
def backbone(
    *,
    data: Path,
    task: str,
    kind: Kind,
    text_column: str | None = None,
    label_column: str | None = None,
    query_column: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    prompt: str | None = None,
    query_prompt: str | None = None,
    start: str = "best",
    loss: LossName = "contrast",
    teacher_scale: float = 1.0,
    epochs: int = 3,
    patience: int = 2,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    max_tokens: int = 256,
    held: float = 0.2,
    folds: int = 1,
    seed: int = 0,
    device: str = "auto",
    tensorboard: bool = False,
    wandb: bool = False,
) -> ExitStatus:
    """Train all weights of a model on your own rows.

    The new model has only the new task, because the other adapters and the sparse and multi-vector
    heads belong to the old weights. An index that was made with the old model must be made again.
    This needs thousands of rows, and a GPU for all but small models; try `polyvec train adapter`
    first.

    polyvec train backbone --data pairs.parquet --task shop --kind retrieval --out my-model

    Parameters
    ----------
    data
        A file as for polyvec train adapter.
    task
        The name of the new task. Retrieval makes two tasks, NAME.query and NAME.passage.
    kind
        The kind of rows in the data.
    text_column
        The name of the column text, or for pairs of the column positive, if it has another name.
    label_column
        The name of the column label, or for scored of the column score, if it has another name.
    query_column
        The name of the column query of pairs, if it has another name.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    out
        The folder for the new model. The default is a folder with the name of the task.
    prompt
        An instruction that is put before every text of this task, in training and in use. For
        retrieval it is that of the passages, and the default is the model's own.
    query_prompt
        The instruction that is put before every query. Only for retrieval; the default is the
        model's own.
    start
        The task whose adapter is used and trained with the other weights, "none", or "best".
    loss
        For pairs and retrieval: contrast compares a query with all positives of a step. kl and
        margin-mse learn from a teacher's scores.
    teacher_scale
        The factor of a teacher's scores: 1 for the logits of a cross-encoder, 20 for cosines.
    epochs
        How often every row is used.
    patience
        Training ends after this many epochs in a row without a better score. With 0, it never ends
        early.
    batch_size
        How many rows one training step uses.
    learning_rate
        The highest learning rate. It is reached after a tenth of the run.
    max_tokens
        The length in tokens at which texts are cut in training.
    held
        The share of the rows that is held out at a time to score the model. With 0, all rows are
        used for training, and there are no scores.
    folds
        How often other rows are held out, at most. Each time, a model is trained without them.
    seed
        The seed of every random choice.
    device
        The device that trains: cpu, cuda, cuda:1, or auto, which is the GPU if there is one.
    tensorboard
        Write the metrics for TensorBoard, too, in OUT.run/tensorboard.
    wandb
        Send the metrics to Weights & Biases, too. It must be installed.

    """
    from polyvec.train.options import Options

    options = Options(
        task=task,
        kind=kind,
        prompt=prompt,
        query_prompt=query_prompt,
        start=start,
        loss=loss,
        teacher_scale=teacher_scale,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        held=held,
        folds=folds,
        seed=seed,
        device=device,
        text_column=text_column,
        label_column=label_column,
        query_column=query_column,
        tensorboard=tensorboard,
        wandb=wandb,
        full=True,
    )
    return _train_task(model, data, out or Path(task), options)


def _train_task(model: str | None, data: Path, out: Path, options: "Options") -> ExitStatus:
    """Train a new task, and write what came of it."""
    import shlex

    from polyvec.encoder import find_model
    from polyvec.train.distributed import process_group, rank
    from polyvec.train.new_task import make_adapter

    with process_group():
        outcome = make_adapter(find_model(model), data, out, options)
        if rank():
            return ExitStatus.DONE
    left_out = [*outcome.bad_rows, *outcome.blank_rows]
    for row in left_out[:MAX_BAD_ROWS_SHOWN]:
        note(f"left out {row}")
    if len(left_out) > MAX_BAD_ROWS_SHOWN:
        note(f"left out {len(left_out)} rows in all: see {out}.run/bad-rows.jsonl")
    write = sys.stdout.write
    write(f"{outcome.num_rows:,} rows, starting from {outcome.start}\n")
    if outcome.num_validation:
        write(
            f"{outcome.num_validation:,} of them chose the checkpoint, which is that after "
            f"{outcome.epoch:g} of {options.epochs} epochs\n"
        )
    if outcome.scores:
        write(_score_table(outcome.scores, options.task))
        folds = "one fold" if outcome.num_folds == 1 else f"{outcome.num_folds} folds"
        write(f"on {outcome.num_scored:,} rows held out in {folds}, with 95 % intervals\n")
        for name, score in outcome.differences.items():
            write(f"{options.task} less {outcome.start}: {score} points of {name}\n")
        write(f"{outcome.advice}\n")
    for warning in outcome.warnings:
        write(f"warning: {warning}\n")
    folder, name = shlex.quote(str(out)), options.task
    name += ".query" if options.kind == "retrieval" else ""
    write(f'try: polyvec embed "some text" --model {folder} --task {shlex.quote(name)}\n')
    return ExitStatus.INCOMPLETE if outcome.bad_rows else ExitStatus.DONE


def _score_table(scores: "Mapping[str, Mapping[str, Score]]", task: str) -> str:
    """One line per task and measure, in percent."""
    width = max(len(name) for name in scores)
    measures = [*scores[task]]
    lines = []
    for measure in measures:
        lines.append(f"{measure}:\n")
        lines += [f"  task={name:{width}}  {found[measure]}\n" for name, found in scores.items()]
    return "".join(lines)


@train.command
def negatives(
    data: Path,
    out: Path,
    /,
    *,
    by: Literal["model", "bm25", "both"] = "both",
    model: str | None = None,
    num: int = 7,
    margin: float = 0.95,
    query_column: str = "query",
    text_column: str = "positive",
    lang: str = "lang",
) -> ExitStatus:
    """Find hard negatives for pairs: texts that resemble the positive but do not answer the query.

    The candidates are the positives of the other pairs. Pairs with a missing or an empty text are
    set aside in the file OUT.rejected.jsonl. The exit status is 1 if no negative was found.

    polyvec train negatives pairs.parquet mined.parquet

    Parameters
    ----------
    data
        A Parquet file with the columns query, positive, a language, and optionally group.
    out
        The Parquet file to write: the same pairs with their negatives, the hardest first.
    by
        How candidates are ranked: by the embeddings of a model, by BM25, or alternately by both.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    num
        The largest number of negatives per pair.
    margin
        A candidate is left out if its score is above this share of the positive's score, because
        it may be an unmarked answer.
    query_column
        The name of the column with the queries.
    text_column
        The name of the column with the positives.
    lang
        The name of the language column.

    """
    from polyvec.encoder import Encoder
    from polyvec.rejected_rows import SUFFIX, set_aside
    from polyvec.train.data.hard_negatives import bm25_scores, cosine_scores, merge_negatives, mine
    from polyvec.train.data.pairs import read_pairs, write_pairs

    with set_aside(out.with_name(out.name + SUFFIX)) as report:
        rows = read_pairs(data, text=query_column, partner=text_column, lang=lang, report=report)
        if not rows:
            raise ValueError(
                f"{data} has no usable row" + "".join(f"; {b}" for b in report.first[:1])
            )
    encoder = Encoder.load(model)
    scores = {"model": cosine_scores, "bm25": bm25_scores}
    names = ["model", "bm25"] if by == "both" else [by]
    mined = [mine(rows, scores[name](encoder, rows), num=num, margin=margin) for name in names]
    chosen = merge_negatives(*mined, num=num)
    groups = [str(group) for group in rows.groups]
    write_pairs(
        out,
        texts=rows.texts,
        partners=rows.partners,
        negatives=chosen,
        langs=rows.langs,
        groups=groups,
    )
    count = sum(map(len, chosen))
    sys.stdout.write(f"{count:,} negatives for {len(rows):,} pairs in {out}\n")
    return ExitStatus.DONE if count else ExitStatus.INCOMPLETE


@train.command
def failures(
    out: Path,
    /,
    *,
    pairs: Path | None = None,
    lang: str = "lang",
    num: int = 2_000,
    num_eval: int = 200,
    seed: int = 0,
) -> None:
    """Write examples of what embedding models get wrong: rows to train on and tasks to score with.

    The cases are syntax, entities, polar and quality. For each CASE, the verb writes the rows
    OUT/adapters/retrieval/failures-CASE.parquet and the task folder OUT/eval/failures-CASE/. Rows
    and tasks share no name, no template and no group of pairs.

    polyvec train failures made/ --pairs squad.parquet

    Parameters
    ----------
    out
        The folder to write to.
    pairs
        A Parquet file with the columns query, positive, a language, and optionally negatives and
        group. Half of the examples are made from it, if it has enough rows.
    lang
        The name of the language column.
    num
        The largest number of rows to train on, for each case.
    num_eval
        The largest number of questions to score with, for each case.
    seed
        The seed of every random choice.

    """
    from polyvec.train.data.failure_cases import CASES, make_examples, write_rows, write_task
    from polyvec.train.data.pairs import read_pairs

    given = None if pairs is None else read_pairs(pairs, lang=lang)
    for case in CASES:
        rows = make_examples(case, "train", num=num, seed=seed, given=given)
        task = make_examples(case, "eval", num=num_eval, seed=seed, given=given)
        write_rows(out / f"adapters/retrieval/failures-{case}.parquet", rows)
        write_task(out / f"eval/failures-{case}", task)
        sys.stdout.write(f"{case}: {len(rows):,} rows to train on, {len(task):,} questions\n")
