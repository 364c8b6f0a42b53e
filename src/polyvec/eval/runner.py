"""Run tasks through mteb and keep the scores.

    RESULTS/NAME.json            the summary, written after every task
    RESULTS/mteb/results/...     mteb's own files, as leaderboards accept them

A run that was killed goes on with the task it was in. A task is scored again when its data or
the model's weights have changed.
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

from polyvec.eval.intervals import DRAWS, KEPT_DRAWS, interval
from polyvec.eval.mteb_tasks import is_local, load_task
from polyvec.eval.protocol import Model, MtebEncoder
from polyvec.eval.results import (
    Score,
    Summary,
    TaskScore,
    read_summary,
    summary_path,
    write_summary,
)
from polyvec.eval.task_folders import task_texts


def evaluate(
    model: Model,
    tasks: Sequence[AbsTask],
    *,
    results: Path,
    variant: str = "",
    progress: bool | None = None,
) -> Summary:
    """The model's scores on `tasks`, beside those kept in `results` from runs before.

    `variant` names a change made for a comparison; its mteb files are not kept. A model that can
    only search (BM25) skips tasks that are not retrieval. `progress` None shows a bar on
    terminals: it counts characters, and gives the time left.
    """
    meta = model.mteb_model_meta
    name = str(meta.name).rpartition("/")[2]
    path = summary_path(results, name, variant)
    summary = read_summary(path) if path.exists() else None
    if summary is None or summary.revision != meta.revision:
        today = date.today().isoformat()
        summary = Summary(name, variant, str(meta.revision), version("mteb"), machine(), today)
    waiting = [task for task in tasks if _can_run(model, task) and not _is_done(task, summary)]
    for task in filter(is_local, waiting):
        load_task(task)
    work = [_characters(task) if is_local(task) else 0 for task in waiting]
    cache = None if variant else mteb.ResultCache(results / "mteb")
    # tqdm's own None means: not unless standard error is a terminal.
    hidden = None if progress is None else not progress
    with tqdm(
        total=sum(work), unit="char", unit_scale=True, disable=hidden, file=sys.stderr
    ) as bar:
        if isinstance(model, MtebEncoder):
            model.encoded = bar.update
        for i, task in enumerate(waiting):
            bar.set_description(f"{path.stem} {task.metadata.name}")
            load_task(task)
            summary.tasks[task.metadata.name] = _score(model, task, cache)
            write_summary(path, summary)
            # `work` is an estimate where mteb draws its training texts at random.
            bar.update(sum(work[: i + 1]) - bar.n)
    return summary


def machine() -> str:
    """The machine in generic words: cores, and the instructions that decide CPU speed."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if platform.system() == "Linux" else ()
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}
    words = [platform.machine(), *(word for flag, word in known.items() if flag in flags)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU core{'s' * (cores != 1)} ({', '.join(words)})"


def _score(model: Model, task: AbsTask, cache: mteb.ResultCache | None) -> TaskScore:
    start = monotonic()
    if isinstance(model, MtebEncoder) and model.prepare:
        model.prepare(task)
    # mteb draws from a generator that a task keeps: every model must see the same draws.
    task.rng_state, task.np_rng = random.Random(task.seed), np.random.default_rng(task.seed)
    # mteb and datasets draw bars of their own on stderr, which nothing turns off.
    with TemporaryDirectory() as predictions, redirect_stderr(StringIO()):
        result = mteb.evaluate(
            cast(MTEBModels, model),
            task,
            cache=cache,
            # Half a task is not continued: what mteb samples depends on what it sampled before.
            overwrite_strategy="always",
            prediction_folder=Path(predictions),
            show_progress_bar=False,
            co2_tracker=False,
        )
        # Some of mteb's own tasks write no predictions.
        path = Path(predictions) / task.prediction_file_name
        predicted = json.loads(path.read_text()) if path.exists() else {}
    score, subsets, draws = _with_intervals(task, result.task_results[0], predicted)
    return TaskScore(
        kind=task.metadata.type,
        metric=task.metadata.main_score,
        revision=task.metadata.dataset["revision"],
        seconds=monotonic() - start,
        score=score,
        subsets=subsets,
        draws=tuple(round(10_000 * draw) for draw in draws[:KEPT_DRAWS]),
    )


def _with_intervals(
    task: AbsTask, result: TaskResult, predicted: dict[str, dict]
) -> tuple[Score, dict[str, Score], Sequence[float]]:
    """The main score with its interval: the mean over subsets, each subset's, and the draws."""
    if not is_local(task):
        # mteb's own tasks hold their data in many forms, of which the intervals know one.
        return Score(float(result.get_score())), _subset_means(result), ()
    assert task.dataset is not None
    draw = DRAWS.get(task.metadata.type)
    subsets: dict[str, Score] = {}
    draws = []
    for scores in sorted(result.scores["test"], key=lambda scores: scores["hf_subset"]):
        name, value = scores["hf_subset"], scores["main_score"]
        if draw is None:
            subsets[name] = Score(value)
        else:
            data, prediction = task.dataset[name]["test"], predicted[name]["test"]
            draws.append(draw(task.metadata.main_score, data, prediction))
            subsets[name] = Score(value, *interval(draws[-1]))
    mean = float(np.mean([score.value for score in subsets.values()]))
    if not draws:
        return Score(mean), subsets, ()
    whole = np.mean(draws, axis=0)
    return Score(mean, *interval(whole)), subsets, whole.tolist()


def _subset_means(result: TaskResult) -> dict[str, Score]:
    """Each subset's main score, the mean over the task's splits."""
    values: dict[str, list[float]] = {}
    for subsets in result.scores.values():
        for scores in subsets:
            values.setdefault(scores["hf_subset"], []).append(scores["main_score"])
    return {name: Score(float(np.mean(part))) for name, part in sorted(values.items())}


def _can_run(model: Model, task: AbsTask) -> bool:
    return isinstance(model, MtebEncoder) or isinstance(task, AbsTaskRetrieval)


def _is_done(task: AbsTask, summary: Summary) -> bool:
    score = summary.tasks.get(task.metadata.name)
    return score is not None and score.revision == task.metadata.dataset["revision"]


def _characters(task: AbsTask) -> int:
    """About how many characters mteb will have encoded."""
    if not isinstance(task, AbsTaskClassification):
        texts = list(task_texts(task))
        most = getattr(task, "max_document_to_embed", None) or len(texts)
        return int(sum(map(len, texts)) * min(1, most / len(texts)))
    assert task.dataset is not None
    total = 0.0
    for parts in task.dataset.values():
        labels = len(set(parts["train"]["label"]))
        drawn = min(1, task.samples_per_label * labels / len(parts["train"]))
        share = 1 - (1 - drawn) ** task.n_experiments
        total += share * sum(map(len, parts["train"]["text"]))
        total += sum(map(len, parts["test"]["text"]))
    return int(total)
