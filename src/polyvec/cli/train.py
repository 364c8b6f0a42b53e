"""The verbs of `polyvec train`, as functions that a command line calls."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from polyvec.encoder import Encoder, find_model
from polyvec.train.data.failure_cases import CASES, make_examples, write_rows, write_task
from polyvec.train.data.hard_negatives import bm25_scores, cosine_scores, merge_negatives, mine
from polyvec.train.data.pairs import read_pairs, write_pairs
from polyvec.train.new_task import Options, make_adapter
from polyvec.train.recipe import run_recipe

SHOWN = 5
"""Bad rows that are named on the terminal; the run's folder has all."""

DEFAULTS = Options(task="", kind="classification")


def adapter(
    *,
    data: Path,
    task: str,
    kind: Literal["classification", "pairs", "scored"],
    model: str | None = None,
    out: Path | None = None,
    prompt: str = DEFAULTS.prompt,
    start: str = DEFAULTS.start,
    epochs: int = DEFAULTS.epochs,
    batch_size: int = DEFAULTS.batch_size,
    learning_rate: float = DEFAULTS.learning_rate,
    max_tokens: int = DEFAULTS.max_tokens,
    held: float = DEFAULTS.held,
    seed: int = DEFAULTS.seed,
) -> None:
    """Add a task of your own to a model: one new adapter, everything else as it was.

    polyvec train adapter --data mails.csv --task mails --kind classification --out my-model

    Beside the new model, my-model.run holds the record (metrics.jsonl, run.png, bad-rows.jsonl,
    outcome.json). A run that was killed goes on where it was.

    Parameters
    ----------
    data
        A .parquet, .csv or .jsonl file. For classification it has the columns text and label; for
        pairs query and positive, and perhaps negatives (texts that look like the positive) and
        group; for scored text1, text2 and score.
    task
        The new task's name, as in encode(texts, task="mails").
    kind
        What the rows are.
    model
        The model to add to: a folder or a name on the Hugging Face hub; by default the bundled one.
    out
        The folder of the new model; by default one named after the task.
    prompt
        An instruction that is put before every text of this task, now and when encoding.
    start
        The task of the model whose adapter the new one starts from: "none" is from nothing, "best"
        whichever serves a sample of the rows best.
    epochs
        How often every row is read.
    batch_size
        Rows in a step.
    learning_rate
        The highest rate, reached after a tenth of the run.
    max_tokens
        Longer texts are cut in training.
    held
        The part of the rows that is kept back, to score the model before and after; 0 trains on
        all of them and scores nothing.
    seed
        Decides which rows are kept back, their order, and the adapter's first numbers.

    """
    options = Options(
        task=task,
        kind=kind,
        prompt=prompt,
        start=start,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        held=held,
        seed=seed,
    )
    out = out or Path(task)
    outcome = make_adapter(find_model(model), data, out, options)
    say = sys.stderr.write
    for bad in outcome.bad_rows[:SHOWN]:
        say(f"left out {bad}\n")
    if len(outcome.bad_rows) > SHOWN:
        say(f"left out {len(outcome.bad_rows)} rows in all: see {out}.run/bad-rows.jsonl\n")
    sys.stdout.write(
        f"{outcome.num_rows:,} rows trained on, starting from {outcome.start}; "
        f"{outcome.num_held:,} kept back\n"
    )
    if outcome.scores:
        sys.stdout.write(f"{outcome.measure} on the rows kept back:\n")
    for name, score in outcome.scores.items():
        sys.stdout.write(f"  task={name:20} {100 * score:5.1f}\n")
    where, name = shlex.quote(str(out)), shlex.quote(task)
    sys.stdout.write(f'try: polyvec embed "some text" --model {where} --task {name}\n')


def negatives(
    data: Path,
    out: Path,
    /,
    *,
    by: Literal["model", "bm25", "both"] = "both",
    model: str | None = None,
    num: int = 7,
    margin: float = 0.95,
    lang: str = "lang",
) -> None:
    """Find hard negatives for pairs: texts that look like the positive and are none.

    polyvec train negatives pairs.parquet mined.parquet

    Parameters
    ----------
    data
        A Parquet file with the columns query, positive, a language, and perhaps group.
    out
        The Parquet file to write: the same pairs with their negatives, the hardest first.
    by
        What ranks the candidates: a model's vectors, BM25, or the two in turn.
    model
        A folder or a name on the Hugging Face hub; by default the bundled model.
    num
        Negatives of each pair, at most.
    margin
        A candidate with more than this part of the positive's score is taken for an answer that
        nobody marked.
    lang
        The column of the language.

    """
    rows = read_pairs(data, lang=lang)
    encoder = Encoder.load(model)
    scores = {"model": cosine_scores, "bm25": bm25_scores}
    names = ["model", "bm25"] if by == "both" else [by]
    mined = [mine(rows, scores[name](encoder, rows), num=num, margin=margin) for name in names]
    found = merge_negatives(*mined, num=num)
    groups = [str(group) for group in rows.groups]
    write_pairs(
        out,
        texts=rows.texts,
        partners=rows.partners,
        negatives=found,
        langs=rows.langs,
        groups=groups,
    )
    count = sum(map(len, found))
    sys.stdout.write(f"{count:,} negatives for {len(rows):,} pairs in {out}\n")


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
    """Write examples of what embedding models get wrong: rows to train on, tasks to score with.

    polyvec train failures made/ --pairs squad.parquet

    DIR/adapters/retrieval/failures-CASE.parquet and DIR/eval/failures-CASE/ for the cases syntax,
    entities, polar and quality. The two sides share no name, no template and no group of pairs.

    Parameters
    ----------
    out
        The folder to write to.
    pairs
        A Parquet file with query, positive, a language, and perhaps negatives and group, from
        which half of the examples are made where it has enough.
    lang
        The column of the language.
    num
        Rows to train on, at most, of each case.
    num_eval
        Questions to score with, at most, of each case.
    seed
        Decides every choice.

    """
    given = None if pairs is None else read_pairs(pairs, lang=lang)
    for case in CASES:
        rows = make_examples(case, "train", num=num, seed=seed, given=given)
        task = make_examples(case, "eval", num=num_eval, seed=seed, given=given)
        write_rows(out / f"adapters/retrieval/failures-{case}.parquet", rows)
        write_task(out / f"eval/failures-{case}", task)
        sys.stdout.write(f"{case}: {len(rows):,} rows to train on, {len(task):,} questions\n")


def recipe(
    file: Annotated[Path, Parameter(name="RECIPE")],
    /,
    *options: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> None:
    """Run a training recipe: a Python file, which is trusted like any program.

    polyvec train recipe recipes/debug.py --out runs/debug

    Parameters
    ----------
    file
        The file, such as those in recipes/. In several processes: torchrun RECIPE.
    options
        What follows is the recipe's own; its docstring says what it takes.

    """
    run_recipe(file, options)
