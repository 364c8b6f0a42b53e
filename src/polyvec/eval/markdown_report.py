"""The report as a Markdown page. Every number on it comes from a summary in the results folder."""

import re
import shlex
from collections.abc import Sequence
from statistics import mean
from textwrap import fill

from polyvec.eval.intervals import lead_interval
from polyvec.eval.paper_scores import PAPER_SCORES, PAPER_TASKS
from polyvec.eval.results import Score, Summary, TaskScore, model_labels
from polyvec.eval.task_kinds import COLUMNS, METRICS, report_column

START, END = "<!-- results: start -->", "<!-- results: end -->"
"""Markers in the README between which its table stands."""

NOT_RUN = "-"
"""Content of a table cell for a task that a model was not run on."""

PAGE_WIDTH = 100
"""Characters of a line of prose."""

COMPARISONS = {
    "dim": ("Matryoshka dims", "dims"),
    "adapter": ("Adapters by kind of task", "adapters"),
    "instruction": ("With and without instructions", "prompts"),
    "base": ("Long texts by rotary base", "long"),
    "vectors": ("Vectors of fewer bits", "quantised"),
    "chunks": ("Naive and late chunking", "late-chunking"),
    "failures": ("Failure cases", "failures"),
}
"""The titles of the comparisons and the verbs that make them, by the first word of their variants'
names."""

LEAD_NOTE = """\
The brackets contain the 95 % interval of the lead. It is computed from the same resampled items for
both models. A lead is marked "better" or "worse" if its interval does not contain zero. Clustering
scores have no interval."""

PAPER_NOTE = """\
jina-embeddings-v3 has 572 million parameters. The last column says how our task differs from the
paper's. Where they differ, the two scores cannot be compared exactly."""

PREFACE = """\
`polyvec eval report` writes this page from the JSON files in this folder; do not edit it. The
same scores are in [results.html](results.html), with plots. `DATA` is the folder of the tasks
([docs/evaluation.md](../docs/evaluation.md)). This command computes the scores of the models by
kind of task and by task:

    {command}

{unknown}The machines were: {machines}.

The tasks are folders of public development data. mteb {mteb} runs them with its own metrics and
settings. Classification fits a logistic regression on 8 texts per label, ten times. Clustering runs
k-means ten times. Bitext mining searches translations into English. Retrieval compares every query
with every document. Each text is embedded with the adapter that the paper uses for the kind of
task.

Scores are multiplied by 100. The brackets contain the 95 % interval over a thousand bootstrap
resamples of the test's queries, pairs or texts. A task's score is the mean over its languages. The
score of a kind of task is the mean over its tasks.

{stands_on}
"""


WHOLE_NOTE = "All rows of all tables are scored."

SHORTENED_NOTE = """\
Large tables are shortened (`--no-whole`), so that an evaluation takes minutes on two CPU cores. A
hash of the content decides which rows are kept, and each language keeps the same number. Retrieval
and bitext mining are easier on shortened tables than on whole ones, because there are fewer texts
to choose from. Tasks whose documents exceed half a million characters (needles and passkeys of
2,048 tokens and more, whole meetings) only run if they are named. The table "What the scores stand
on" says which rows were left out."""


def render_report(summaries: Sequence[Summary]) -> str:
    """Return the whole page. Raises ValueError if there are only variants and no model itself."""
    models = unchanged_models(summaries)
    if not models:
        raise ValueError(
            "the results contain only comparisons; `polyvec eval run` scores a model itself"
        )
    first, *others = models
    labels = model_labels(models)
    parts = [
        _preface(summaries, models),
        "## By kind of task\n\n" + column_table(models, "model"),
        "## What the scores stand on\n\n" + data_table(models),
        "## By task\n\n" + task_table(models),
        "## STS by language\n\n" + subset_table(models, "STS"),
    ]
    if languages := language_table(first):
        parts.append(f"## Other tasks by language: {labels[0]}\n\n{languages}")
    parts += [
        f"## {labels[0]} and {label}\n\n{LEAD_NOTE}\n\n{leads}"
        for other, label in zip(others, labels[1:], strict=True)
        if (leads := lead_table(first, other))
    ]
    if rows := paper_table(first):
        parts.append(f"## {labels[0]} and the paper\n\n{PAPER_NOTE}\n\n{rows}")
    for word, variants in comparisons(summaries):
        title, _ = COMPARISONS[word]
        command = "\n\n".join(comparison_commands(word, variants))
        rows = variant_table(variants, word)
        parts.append(f"## {title}: {model_labels(variants)[0]}\n\n{command}\n\n{rows}")
    parts.append("## Runs\n\n" + run_table(models))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def fill_summary(page: str, summaries: Sequence[Summary]) -> str:
    """Return `page` with the table by kind of task between its two markers.

    A page without markers is returned as it is.
    """
    head, start, rest = page.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end:
        return page
    models = unchanged_models(summaries)
    # A reader can only choose a model that has a name or an address.
    known = [model for model in models if model.argument] or models
    stands_on = fill(stands_on_note(known), PAGE_WIDTH, break_on_hyphens=False)
    return f"{head}{start}\n\n{column_table(known, 'model')}\n\n{stands_on}\n\n{end}{tail}"


def unchanged_models(summaries: Sequence[Summary]) -> list[Summary]:
    """Return the summaries of models themselves, without the variants of comparisons."""
    return ordered([summary for summary in summaries if not summary.variant])


def ordered(summaries: Sequence[Summary]) -> list[Summary]:
    """Sort polyvec's models first, then by falling number of tasks, then by name."""
    ours = "polyvec"
    return sorted(summaries, key=lambda s: (not s.model.startswith(ours), -len(s.tasks), s.model))


def column_table(summaries: Sequence[Summary], first: str) -> str:
    """Return a table with one row per model or variant and one column per kind of task.

    A cell is the mean over the tasks of its kind. It is only filled if the model ran all tasks of
    the kind that the other models ran, on the data of the first model that ran them. `first` is the
    header of the first column.
    """
    tasks = {name: task for s in reversed(summaries) for name, task in s.tasks.items()}
    task_columns = {name: report_column(name, task.kind) for name, task in tasks.items()}
    labels = dict(zip(map(id, summaries), model_labels(summaries), strict=True))
    columns = [column for column in COLUMNS if column in task_columns.values()]
    rows = []
    for summary in sorted(summaries, key=_dim) if first == "dim" else summaries:
        cells = []
        for column in columns:
            names = [name for name, own in task_columns.items() if own == column]
            complete = all(
                name in summary.tasks and summary.tasks[name].is_comparable(tasks[name])
                for name in names
            )
            scores = [summary.tasks[name].score.value for name in names if complete]
            cells.append(f"{100 * mean(scores):.1f}" if complete else NOT_RUN)
        label = labels[id(summary)]
        rows.append([summary.variant.removeprefix(first).strip() or label, *cells])
    return table([first, *columns], rows)


def variant_table(summaries: Sequence[Summary], word: str) -> str:
    """Return a table with one row per variant of one model.

    Dims and adapters have one column per kind of task, other comparisons one column per task.
    """
    if word in ("dim", "adapter"):
        return column_table(summaries, word)
    names = sorted(
        {name: task for s in summaries for name, task in s.tasks.items()}.items(),
        key=lambda item: _task_order(*item),
    )
    rows = []
    for summary in sorted(summaries, key=lambda s: _natural(s.variant)):
        scores = [summary.tasks[name].score if name in summary.tasks else None for name, _ in names]
        rows.append([summary.variant.removeprefix(word).strip(), *(_cell(s, None) for s in scores)])
    return table([word, *(name for name, _ in names)], rows)


def task_table(summaries: Sequence[Summary]) -> str:
    """Return a table with one row per task and one column per model. Bold is the best of a row."""
    groups: dict[str, list[TaskScore]] = {}
    for summary in summaries:
        for name, task in summary.tasks.items():
            same = groups.setdefault(name, [])
            if not any(task.is_comparable(other) for other in same):
                same.append(task)
    rows = []
    for name, different in sorted(
        groups.items(), key=lambda item: _task_order(item[0], item[1][0])
    ):
        for task in different:
            scores = [
                own.score if (own := s.tasks.get(name)) and own.is_comparable(task) else None
                for s in summaries
            ]
            best = max(score.value for score in scores if score)
            metric = METRICS[task.metric].title if task.metric in METRICS else task.metric
            # Scores of other data, or by other code, have a row of their own.
            label = f"{name} ({task.revision[:8]})" if len(different) > 1 else name
            rows.append([label, metric, *(_cell(score, best) for score in scores)])
    return table(["task", "metric", *model_labels(summaries)], rows)


def data_table(summaries: Sequence[Summary]) -> str:
    """Return a table with one row per kind of task: its tasks, and the rows that they lack."""
    rows = [
        [column, str(len(names)), ", ".join(names), "; ".join(cuts) or "nothing"]
        for column, (names, cuts) in _data_by_column(summaries).items()
    ]
    return table(["kind of task", "tasks", "names", "left out"], rows)


def stands_on_note(summaries: Sequence[Summary]) -> str:
    """Describe in words what the means by kind of task were computed on."""
    parts = []
    for column, (names, cuts) in _data_by_column(summaries).items():
        lacking = f", {'; '.join(cuts)}" if cuts else ""
        parts.append(f"{column}: {_shorten_names(names)}{lacking}")
    return "The means stand on these tasks. " + ". ".join(parts) + "."


def _data_by_column(summaries: Sequence[Summary]) -> dict[str, tuple[list[str], list[str]]]:
    """Return the names of the tasks and what they lack, by column of the report."""
    tasks = {name: task for s in reversed(summaries) for name, task in s.tasks.items()}
    ordered_tasks = sorted(tasks.items(), key=lambda item: _task_order(*item))
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name, task in ordered_tasks:
        names, cuts = found.setdefault(report_column(name, task.kind), ([], []))
        names.append(name)
        if task.left_out and task.left_out not in cuts:
            cuts.append(task.left_out)
    return found


def _shorten_names(names: Sequence[str]) -> str:
    """Return names of tasks in which those that differ by their last part are written once.

    >>> _shorten_names(["needle-256", "needle-512", "stsb-dev"])
    'needle-256/512, stsb-dev'
    """
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, dash, end = name.rpartition("-")
        stems.setdefault(stem + dash, []).append(end)
    return ", ".join(stem + "/".join(ends) for stem, ends in stems.items())


def subset_table(summaries: Sequence[Summary], kind: str) -> str:
    """Return a table with one row per task and language, for one of mteb's task types."""
    keys = dict.fromkeys(
        (name, subset)
        for s in summaries
        for name, task in s.tasks.items()
        if task.kind == kind
        for subset in task.subsets
    )
    rows = []
    models = [s for s in summaries if any(task.kind == kind for task in s.tasks.values())]
    tasks = {name: task for s in reversed(models) for name, task in s.tasks.items()}
    for name, subset in keys:
        scores = [
            own.subsets.get(subset)
            if (own := s.tasks.get(name)) and own.is_comparable(tasks[name])
            else None
            for s in models
        ]
        best = max((score.value for score in scores if score), default=None)
        rows.append([name, subset, *(_cell(score, best) for score in scores)])
    return table(["task", "language", *model_labels(models)], rows)


def language_table(summary: Summary) -> str:
    """Return a table with one row per language, for one model's multilingual tasks except STS.

    Returns an empty string if the model ran no such task.
    """
    tasks = {n: t for n, t in summary.tasks.items() if len(t.subsets) > 1 and t.kind != "STS"}
    languages = sorted(
        {subset.removesuffix("-en") for task in tasks.values() for subset in task.subsets}
    )
    rows = []
    for language in languages:
        scores = [
            task.subsets.get(language) or task.subsets.get(f"{language}-en")
            for task in tasks.values()
        ]
        rows.append([language, *(_cell(score, None) for score in scores)])
    return table(["language", *tasks], rows) if rows else ""


def lead_table(a: Summary, b: Summary) -> str:
    """Return a table of the lead of `a` over `b` on each task that both ran on the same data.

    Returns an empty string if there is no such task.
    """
    rows = []
    for name, task in sorted(a.tasks.items(), key=lambda item: _task_order(*item)):
        other = b.tasks.get(name)
        if other is None or not other.is_comparable(task):
            continue
        lead = task.score.value - other.score.value
        bounds = lead_interval(task.draws, other.draws, lead)
        if bounds is None:
            rows.append([name, f"{100 * lead:+.1f}", ""])
            continue
        low, high = bounds
        mark = "better" if low > 0 else "worse" if high < 0 else "same"
        rows.append([name, f"{100 * lead:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", mark])
    return table(["task", "lead", "mark"], rows) if rows else ""


def paper_table(summary: Summary) -> str:
    """Return a table of one model's scores beside those of jina-embeddings-v3.

    Returns an empty string if the paper has none of the model's tasks.
    """
    rows = []
    for name, task in summary.tasks.items():
        paper_task, language, note = PAPER_TASKS.get(name, (name, "", "the same task"))
        score = task.subsets.get(language, task.score)
        if paper_task in PAPER_SCORES:
            paper_score = f"{PAPER_SCORES[paper_task]:.1f}"
            rows.append([name, _cell(score, None), paper_task, paper_score, note])
    header = ["task", summary.model, "the paper's task", "jina-embeddings-v3", "the paper's data"]
    return table(header, rows) if rows else ""


def comparisons(summaries: Sequence[Summary]) -> list[tuple[str, list[Summary]]]:
    """Return the variants of each comparison of each model, with the comparison's name."""
    groups: dict[tuple[str, str], list[Summary]] = {}
    for word in COMPARISONS:
        for summary in ordered([s for s in summaries if s.variant.partition(" ")[0] == word]):
            groups.setdefault((word, f"{summary.model} {summary.revision}"), []).append(summary)
    return [(word, variants) for (word, _), variants in groups.items()]


def comparison_commands(word: str, variants: Sequence[Summary]) -> list[str]:
    """Return the commands that computed a comparison, as indented lines of Markdown."""
    _, verb = COMPARISONS[word]
    model = next((summary.argument for summary in variants if summary.argument), "MODEL")
    # A variant of late chunking by one adapter is called "chunks by ADAPTER NAME".
    by = {re.match(r"chunks by (\S+)", summary.variant) for summary in variants}
    adapters = sorted({f" --adapter {match[1]}" if match else "" for match in by})
    words = shlex.quote(model)
    return [f"    polyvec eval {verb} {words}{adapter} --data DATA" for adapter in adapters]


def run_table(summaries: Sequence[Summary]) -> str:
    """Return a table of the machine, the date and the minutes of each model's run."""
    rows = []
    for summary, label in zip(summaries, model_labels(summaries), strict=True):
        minutes = sum(task.seconds for task in summary.tasks.values()) / 60
        rows.append([label, summary.revision[:12], summary.machine, summary.date, f"{minutes:.0f}"])
    return table(["model", "fingerprint", "machine", "date", "minutes"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose other columns are numbers.

    >>> print(table(["model", "STS"], [["a", "71.2"]]))
    | model | STS |
    |---|---:|
    | a | 71.2 |
    """
    lines = [header, *rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|---" + "|---:" * (len(header) - 1) + "|", *text[1:]])


def _preface(summaries: Sequence[Summary], models: Sequence[Summary]) -> str:
    known = [summary.argument for summary in models if summary.argument]
    unknown = [
        label
        for summary, label in zip(models, model_labels(models), strict=True)
        if not summary.argument
    ]
    shortened = any(task.left_out for model in models for task in model.tasks.values())
    whole = all(not task.left_out for model in models for task in model.tasks.values())
    names = shlex.join(dict.fromkeys(known)) or "MODEL"
    text = PREFACE.format(
        command=f"polyvec eval run {names} --data DATA" + " --no-whole" * shortened,
        unknown=f"The folders of these models are not public: {', '.join(unknown)}. "
        if unknown
        else "",
        machines="; ".join(sorted({summary.machine for summary in models})),
        mteb=" and ".join(sorted({summary.mteb for summary in summaries})),
        stands_on=WHOLE_NOTE if whole else SHORTENED_NOTE,
    )
    paragraphs = text.strip().split("\n\n")
    wrapped = [
        part if part.startswith("    ") else fill(part, PAGE_WIDTH, break_on_hyphens=False)
        for part in paragraphs
    ]
    return "\n\n".join(["# Results", *wrapped])


def _cell(score: Score | None, best: float | None) -> str:
    if score is None:
        return NOT_RUN
    value = f"{100 * score.value:.1f}"
    value = f"**{value}**" if score.value == best else value
    if score.low is None or score.high is None:
        return value
    return f"{value} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _task_order(name: str, task: TaskScore) -> tuple[int, str, int]:
    stem, _, number = name.rpartition("-")
    column = COLUMNS.index(report_column(name, task.kind))
    return (column, stem, int(number)) if number.isdigit() else (column, name, 0)


def _natural(variant: str) -> list[int | str]:
    """Return a key that sorts late-64 before late-256."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", variant)]


def _dim(summary: Summary) -> int:
    return int(summary.variant.removeprefix("dim "))
