"""Run tasks, keep scores: mteb's JSON for leaderboards, and one small summary a model for people.

    RESULTS/NAME.json            the summary, written after every task
    RESULTS/mteb/results/...     mteb's own files

A run that was killed goes on with the task it was in. A task is scored again when its data or
the model's weights have changed.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from tqdm import tqdm

from polyvec.eval.intervals import DRAWS, interval, score_draws
from polyvec.eval.local import task_texts
from polyvec.eval.protocol import Model, MtebEncoder


@dataclass(frozen=True, slots=True)
class Score:
    """A score in 0..1 and its 95 % interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One model on one task."""

    kind: str
    """mteb's task type."""

    metric: str
    """mteb's name of the main score."""

    revision: str
    """Fingerprint of the task's data."""

    seconds: float
    score: Score
    """The mean over the subsets."""

    subsets: dict[str, Score]
    """By language, or pair of languages."""


@dataclass(slots=True)
class Summary:
    """One model on all the tasks it was run on."""

    model: str
    variant: str
    """What was changed for a comparison (`dim 64`, `adapter none`); empty for the model as is."""

    revision: str
    """Fingerprint of the weights."""

    mteb: str
    """mteb's version."""

    machine: str
    date: str
    tasks: dict[str, TaskScore] = field(default_factory=dict)


def evaluate(
    model: Model,
    tasks: Sequence[AbsTask],
    *,
    results: Path,
    variant: str = "",
    progress: bool = True,
) -> Summary:
    """The model's scores on `tasks`, and on those scored before into the same folder.

    A model that can only search (BM25) skips tasks that are not retrieval. `progress` shows a
    bar on stderr that counts characters, with the time left.
    """
    meta = model.mteb_model_meta
    name = meta.name.rpartition("/")[2]
    path = results / f"{'.'.join([name, *variant.split()])}.json"
    summary = read_summary(path) if path.exists() else None
    if summary is None or summary.revision != meta.revision:
        fresh = (version("mteb"), machine(), date.today().isoformat())
        summary = Summary(name, variant, meta.revision, *fresh)
    waiting = [task for task in tasks if _can(model, task) and not _is_done(task, summary)]
    for task in waiting:
        if not task.data_loaded:
            task.load_data()
    work = {task.metadata.name: _characters(task) for task in waiting}
    with _bar(sum(work.values()), hidden=not progress) as bar:
        if isinstance(model, MtebEncoder):
            model.encoded = bar.update
        done = 0
        for task in waiting:
            bar.set_description(f"{name} {variant} {task.metadata.name}".replace("  ", " "))
            summary.tasks[task.metadata.name] = _score(model, task, results / "mteb", variant)
            write_summary(path, summary)
            # Characters are an estimate for classification, where mteb samples its training texts.
            done += work[task.metadata.name]
            bar.update(done - bar.n)
    return summary


def read_summaries(results: Path) -> list[Summary]:
    """Every summary in a folder of results, by file name."""
    return [read_summary(path) for path in sorted(results.glob("*.json"))]


def read_summary(path: Path) -> Summary:
    """What `write_summary` wrote."""
    data = json.loads(path.read_text())
    tasks = {name: _task_score(task) for name, task in data.pop("tasks").items()}
    return Summary(**data, tasks=tasks)


def write_summary(path: Path, summary: Summary) -> None:
    """Replace `path` in one step, so that a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(_rounded(asdict(summary)), indent=1, ensure_ascii=False) + "\n")
    whole.replace(path)


def machine() -> str:
    """This machine in generic words: cores, and the instructions that decide CPU speed."""
    words = f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}"
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}
    return ", ".join([words, *(word for flag, word in known.items() if flag in flags)]) + ")"


def _score(model: Model, task: AbsTask, cache: Path, variant: str) -> TaskScore:
    start = monotonic()
    if isinstance(model, MtebEncoder) and model.prepare:
        model.prepare(task)
    with TemporaryDirectory() as predictions:
        # mteb and datasets draw bars of their own on stderr, which nothing turns off.
        with redirect_stderr(StringIO()):
            result = mteb.evaluate(
                model,
                task,
                cache=None if variant else mteb.ResultCache(cache),
                # Half a task is not continued: its samples depend on what was drawn before.
                overwrite_strategy="always",
                prediction_folder=Path(predictions),
                show_progress_bar=False,
                co2_tracker=False,
            )
        predicted = json.loads((Path(predictions) / task.prediction_file_name).read_text())
    subsets: dict[str, Score] = {}
    draws = []
    for scores in result.task_results[0].scores["test"]:
        subset = scores["hf_subset"]
        bounds: tuple[float, ...] = ()
        if task.metadata.type in DRAWS:
            data = task.dataset[subset]["test"]
            metric = task.metadata.main_score
            draws.append(score_draws(task.metadata.type, metric, data, predicted[subset]["test"]))
            bounds = interval(draws[-1])
        subsets[subset] = Score(scores["main_score"], *bounds)
    return TaskScore(
        kind=task.metadata.type,
        metric=task.metadata.main_score,
        revision=task.metadata.dataset["revision"],
        seconds=monotonic() - start,
        score=Score(
            float(np.mean([score.value for score in subsets.values()])),
            *(interval(np.mean(draws, axis=0)) if draws else ()),
        ),
        subsets=dict(sorted(subsets.items())),
    )


def _can(model: Model, task: AbsTask) -> bool:
    return isinstance(model, MtebEncoder) or isinstance(task, AbsTaskRetrieval)


def _is_done(task: AbsTask, summary: Summary) -> bool:
    score = summary.tasks.get(task.metadata.name)
    return score is not None and score.revision == task.metadata.dataset["revision"]


def _characters(task: AbsTask) -> int:
    """About how many characters mteb will have encoded."""
    if not isinstance(task, AbsTaskClassification):
        return sum(map(len, task_texts(task)))
    total = 0.0
    for parts in task.dataset.values():
        labels = len(set(parts["train"]["label"]))
        drawn = task.samples_per_label * labels / len(parts["train"])
        share = 1 - max(0.0, 1 - drawn) ** task.n_experiments
        total += share * sum(map(len, parts["train"]["text"]))
        total += sum(map(len, parts["test"]["text"]))
    return int(total)


@contextmanager
def _bar(total: int, *, hidden: bool) -> Iterator[tqdm]:
    with tqdm(total=total, unit="char", unit_scale=True, disable=hidden, file=sys.stderr) as bar:
        yield bar


def _task_score(data: dict[str, Any]) -> TaskScore:
    subsets = {name: Score(**score) for name, score in data.pop("subsets").items()}
    return TaskScore(**{**data, "score": Score(**data["score"]), "subsets": subsets})


def _rounded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 5) if isinstance(value, float) else value
