"""Run tasks through mteb and store the scores.

    RESULTS/NAME.json            the summary, written after every task
    RESULTS/mteb/results/...     mteb's own files, in the form that leaderboards accept

A run that was killed resumes with the task that was interrupted. A task is scored again if its
data, its metric or the scoring code changed. A model whose weights, config or tokenizer changed is
another model, with a file of its own.
"""

import json
import os
import platform
import random
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from datetime import date
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import cast

import mteb
import numpy as np
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from mteb.models import MTEBModels
from mteb.results import TaskResult
from tqdm import tqdm

from polyvec.eval.intervals import DRAW_SCALE, MAX_STORED_DRAWS, interval
from polyvec.eval.mteb_tasks import is_local, load_task
from polyvec.eval.protocol import Model, MtebEncoder
from polyvec.eval.results import (
    Score,
    Summary,
    TaskScore,
    find_summary,
    read_summary,
    write_summary,
)
from polyvec.eval.task_folders import left_out, task_texts
from polyvec.eval.task_kinds import METRICS

SCORING_VERSION = 1
"""Raised whenever a change of this package changes scores of an unchanged model."""

CPU_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}
"""Instruction sets that decide the speed of a CPU: Linux's flag, and the name in reports."""


def evaluate(
    model: Model,
    tasks: Sequence[AbsTask],
    *,
    results: Path,
    variant: str = "",
    argument: str = "",
    progress: bool | None = None,
) -> Summary:
    """Score `model` on `tasks` and return all its scores, including those already in `results`.

    `argument` is the name by which the command line knows the model. `variant` names the change
    that was made for a comparison. mteb's own files are not stored for variants. A model that can
    only search (BM25) skips tasks that are not retrieval. `progress` shows a bar that counts
    characters and estimates the time left; by default only on a terminal.
    """
    meta = model.mteb_model_meta
    name = str(meta.name).rpartition("/")[2]
    revision = str(meta.revision)
    path = find_summary(results, name, variant, revision)
    if path.exists():
        summary = read_summary(path)
    else:
        today = date.today().isoformat()
        summary = Summary(name, variant, revision, version("mteb"), machine(), today)
    summary.argument = argument or summary.argument
    pending = [task for task in tasks if _can_run(model, task) and not _is_done(task, summary)]
    for task in filter(is_local, pending):
        load_task(task)
    characters = [_estimate_characters(task) if is_local(task) else 0 for task in pending]
    cache = None if variant else mteb.ResultCache(results / "mteb")
    # If `disable` is None, tqdm hides the bar unless standard error is a terminal.
    hidden = None if progress is None else not progress
    with tqdm(
        total=sum(characters), unit="char", unit_scale=True, disable=hidden, file=sys.stderr
    ) as bar:
        if isinstance(model, MtebEncoder):
            model.report_progress = bar.update
        for i, task in enumerate(pending):
            bar.set_description(f"{path.stem} {task.metadata.name}")
            load_task(task)
            summary.tasks[task.metadata.name] = _score(model, task, cache)
            summary.mteb = version("mteb")
            write_summary(path, summary)
            # The counts are estimates for tasks whose training texts mteb samples at random.
            bar.update(sum(characters[: i + 1]) - bar.n)
    return summary


def scorer() -> str:
    """Return the versions of the code that decide a score: ours, and mteb's."""
    return f"polyvec scoring {SCORING_VERSION}, mteb {version('mteb')}"


def machine() -> str:
    """Describe this machine by its cores and the instruction sets that decide CPU speed."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if platform.system() == "Linux" else ()
    words = [platform.machine(), *(word for flag, word in CPU_FLAGS.items() if flag in flags)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU core{'s' * (cores != 1)} ({', '.join(words)})"


def _score(model: Model, task: AbsTask, cache: mteb.ResultCache | None) -> TaskScore:
    start = monotonic()
    if isinstance(model, MtebEncoder) and model.prepare:
        model.prepare(task)
    # mteb samples with a generator that the task keeps. Every model must get the same samples.
    task.rng_state, task.np_rng = random.Random(task.seed), np.random.default_rng(task.seed)
    # mteb and datasets show progress bars of their own on stderr, which no option turns off.
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        result = mteb.evaluate(
            cast(MTEBModels, model),
            task,
            cache=cache,
            # An interrupted task starts again, because mteb's samples depend on earlier samples.
            overwrite_strategy="always",
            prediction_folder=Path(folder),
            show_progress_bar=False,
            co2_tracker=False,
        )
        # Some of mteb's own tasks write no predictions.
        path = Path(folder) / task.prediction_file_name
        predictions = json.loads(path.read_text()) if path.exists() else {}
    score, subsets, draws = _with_intervals(task, result.task_results[0], predictions)
    return TaskScore(
        kind=task.metadata.type,
        metric=task.metadata.main_score,
        revision=task.metadata.dataset["revision"],
        seconds=monotonic() - start,
        score=score,
        subsets=subsets,
        draws=tuple(round(DRAW_SCALE * draw) for draw in draws[:MAX_STORED_DRAWS]),
        scorer=scorer(),
        left_out=left_out(task),
    )


def _with_intervals(
    task: AbsTask, result: TaskResult, predictions: dict[str, dict]
) -> tuple[Score, dict[str, Score], Sequence[float]]:
    """Return the mean over the subsets, the score of each subset, and the draws of the mean."""
    if not is_local(task):
        # mteb's own tasks hold their data in many forms, and `METRICS` supports one of them.
        return Score(float(result.get_score())), _subset_means(result), ()
    assert task.dataset is not None
    bootstrap = METRICS[task.metadata.main_score].bootstrap
    subsets: dict[str, Score] = {}
    draws = []
    for scores in sorted(result.scores["test"], key=lambda scores: scores["hf_subset"]):
        name, value = scores["hf_subset"], scores["main_score"]
        if bootstrap is None:
            subsets[name] = Score(value)
        else:
            draws.append(bootstrap(task.dataset[name]["test"], predictions[name]["test"]))
            subsets[name] = Score(value, *interval(draws[-1]))
    mean = float(np.mean([score.value for score in subsets.values()]))
    if not draws:
        return Score(mean), subsets, ()
    draws_of_mean = np.mean(draws, axis=0)
    return Score(mean, *interval(draws_of_mean)), subsets, draws_of_mean.tolist()


def _subset_means(result: TaskResult) -> dict[str, Score]:
    """Return the main score of each subset, averaged over the task's splits."""
    values: dict[str, list[float]] = {}
    for subsets in result.scores.values():
        for scores in subsets:
            values.setdefault(scores["hf_subset"], []).append(scores["main_score"])
    return {name: Score(float(np.mean(part))) for name, part in sorted(values.items())}


def _can_run(model: Model, task: AbsTask) -> bool:
    return isinstance(model, MtebEncoder) or isinstance(task, AbsTaskRetrieval)


def _is_done(task: AbsTask, summary: Summary) -> bool:
    score = summary.tasks.get(task.metadata.name)
    return score is not None and (score.revision, score.metric, score.scorer) == (
        task.metadata.dataset["revision"],
        task.metadata.main_score,
        scorer(),
    )


def _estimate_characters(task: AbsTask) -> int:
    """Estimate how many characters mteb will ask a model to embed."""
    if not isinstance(task, AbsTaskClassification):
        texts = list(task_texts(task))
        max_texts = getattr(task, "max_document_to_embed", None) or len(texts)
        return int(sum(map(len, texts)) * min(1, max_texts / len(texts)))
    assert task.dataset is not None
    total = 0.0
    for parts in task.dataset.values():
        labels = len(set(parts["train"]["label"]))
        sampled = min(1, task.samples_per_label * labels / len(parts["train"]))
        share = 1 - (1 - sampled) ** task.n_experiments
        total += share * sum(map(len, parts["train"]["text"]))
        total += sum(map(len, parts["test"]["text"]))
    return int(total)
