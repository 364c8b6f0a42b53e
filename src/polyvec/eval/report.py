"""Summaries become docs/results.md: every number in it comes from a file kept beside it."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from statistics import mean

from polyvec.eval.intervals import difference
from polyvec.eval.published import PAPER_TASKS, PUBLISHED
from polyvec.eval.results import Score, Summary, TaskScore
from polyvec.eval.task_folders import KINDS, TRAIN_TEXTS

GROUPS = {
    "STS": "STS",
    "Retrieval": "retrieval",
    "BitextMining": "bitext",
    "Classification": "classification",
    "Clustering": "clustering",
    "PairClassification": "pair classification",
    "Reranking": "reranking",
    "MultilabelClassification": "classification",
    "Summarization": "summarisation",
}
"""mteb's task types and the report's columns."""

COLUMNS = [*dict.fromkeys(GROUPS.values()), "other", "long context"]

LONG = ("needle-*", "passkey-*", "qmsum-*", "LEMB*")
"""Retrieval tasks that test the length of the window: the last column."""

START, END = "<!-- results: start -->", "<!-- results: end -->"
"""Where the README has its table."""

NONE = "-"
"""The cell of a task that a model was not run on."""

METRICS = {
    "cosine_spearman": "Spearman",
    "cosine_ap": "average precision",
    "ndcg_at_10": "nDCG@10",
    "ndcg_at_1": "nDCG@1",
    "f1": "F1",
    "v_measure": "V-measure",
}
"""mteb's names of the main scores, as people write them."""

ROWS = {"pairs": "pairs", "test": "test texts", "texts": "texts", "corpus": "documents"}
"""What a row of a task's table is."""

VARIANTS = {
    "dim": "Matryoshka dims",
    "adapter": "Adapters by kind of task",
    "instruction": "With and without instructions",
    "base": "Long texts by rotary base",
    "vectors": "Vectors of fewer bits",
    "chunks": "Chunks, alone and late",
    "failures": "Failure cases",
}
"""The first word of a comparison's variants, and its title."""

MARKS = """\
In brackets the 95 % interval of the lead, from the same resampled items for both models. A lead is
marked where its interval leaves out zero; clustering has no interval."""

PAPER_NOTE = """\
jina-embeddings-v3 has 572 million parameters. Where the paper tested another part of the same
data, or data of the same kind, the last column says so, and the two figures do not compare
exactly."""

PREFACE = """\
# Results

Written by `polyvec eval report` from the JSON files in `docs/results/`; do not edit. The scores
themselves come from

    {command}

on {machines}. That runs the task folders of the development data through
mteb {mteb} with its own metrics and settings: classification fits a logistic regression on 8 texts
a label, ten times; clustering runs k-means ten times; bitext is searched into English; retrieval is
exhaustive. The adapter is the paper's choice for the kind of task. Scores are times 100. In
brackets is the 95 % interval over a thousand resamples of the test's queries, pairs or texts, where
each has a score of its own. A task's score is the mean over its languages, a kind's the mean over
its tasks. The same with plots: `docs/results.html`.

So that two CPU cores need minutes and not an hour, large tables are cut, to rows chosen by a hash
of what they say, as many of each language: {cuts}. Fewer documents, and fewer sentences to
choose a translation from, make retrieval and bitext easier than on the whole tables. Of training
parts {train} texts a label and language are kept. Tasks whose documents exceed half a million
characters (needles and passkeys of 2,048 tokens and more, whole meetings) run where they are named.
`--whole` cuts and leaves out nothing. Each task's description in mteb's metadata says what was cut
from it.
"""


def render_report(summaries: Sequence[Summary]) -> str:
    """The whole of docs/results.md. Raises ValueError if there are comparisons and no model."""
    whole = ordered([summary for summary in summaries if not summary.variant])
    if not whole:
        raise ValueError("there are only comparisons here: `polyvec eval run` scores a model as is")
    names = " ".join(summary.model for summary in whole)
    versions = " and ".join(sorted({summary.mteb for summary in summaries}))
    machines = " and ".join(sorted({summary.machine for summary in whole}))
    command = f"polyvec eval run {names}"
    cuts = ", ".join(
        f"{name.replace('_', ' ')} to {kind.most:,} {ROWS[kind.table]}"
        for name, kind in KINDS.items()
        if name != "longdoc"
    )
    parts = [
        PREFACE.format(
            command=command, machines=machines, mteb=versions, cuts=cuts, train=TRAIN_TEXTS
        ),
        "## By kind of task\n\n" + group_table(whole, "model"),
        "## By task\n\n" + task_table(whole),
        "## STS by language\n\n" + subset_table(whole, "STS"),
    ]
    if languages := language_table(whole[0]):
        parts.append(f"## Other tasks by language: {whole[0].model}\n\n{languages}")
    parts += [
        f"## {whole[0].model} against {other.model}\n\n{MARKS}\n\n{lead}"
        for other in whole[1:]
        if (lead := difference_table(whole[0], other))
    ]
    if beside := paper_table(whole[0]):
        parts.append(f"## Beside the paper\n\n{PAPER_NOTE}\n\n{beside}")
    for word, variants in comparisons(summaries):
        title = f"{VARIANTS[word]}: {variants[0].model}"
        parts.append(f"## {title}\n\n{variant_table(variants, word)}")
    parts.append("## Runs\n\n" + run_table(whole))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def fill_summary(page: str, summaries: Sequence[Summary]) -> str:
    """`page` with the table by kind of task between its two marks; as it is without them."""
    head, start, rest = page.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end:
        return page
    whole = ordered([summary for summary in summaries if not summary.variant])
    return f"{head}{start}\n\n{group_table(whole, 'model')}\n\n{end}{tail}"


def ordered(summaries: Sequence[Summary]) -> list[Summary]:
    """Models of polyvec first, then those with the most tasks, then by name."""
    ours = "polyvec"
    return sorted(summaries, key=lambda s: (not s.model.startswith(ours), -len(s.tasks), s.model))


def group_table(summaries: Sequence[Summary], first: str) -> str:
    """A row a model or variant, a column a kind of task.

    A model has a mean only where it ran every task of the kind that any of the others ran.
    """
    kinds = {n: group(n, task) for summary in summaries for n, task in summary.tasks.items()}
    columns = [column for column in COLUMNS if column in kinds.values()]
    rows = []
    for summary in sorted(summaries, key=_dim) if first == "dim" else summaries:
        cells = []
        for column in columns:
            names = [name for name, kind in kinds.items() if kind == column]
            whole = summary.tasks.keys() >= set(names)
            scores = [summary.tasks[name].score.value for name in names if whole]
            cells.append(f"{100 * mean(scores):.1f}" if whole else NONE)
        rows.append([summary.variant.removeprefix(first).strip() or summary.model, *cells])
    return table([first, *columns], rows)


def variant_table(summaries: Sequence[Summary], word: str) -> str:
    """A row a variant of one model: a column a kind of task for dims and adapters, else a task."""
    if word in ("dim", "adapter"):
        return group_table(summaries, word)
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
    """A row a task, a column a model, with intervals; the best of a row is bold."""
    tasks = {name: task for s in reversed(summaries) for name, task in s.tasks.items()}
    rows = []
    for name, task in sorted(tasks.items(), key=lambda item: _task_order(*item)):
        scores = [s.tasks[name].score if name in s.tasks else None for s in summaries]
        best = max(score.value for score in scores if score)
        metric = METRICS.get(task.metric, task.metric)
        rows.append([name, metric, *(_cell(score, best) for score in scores)])
    return table(["task", "metric", *(s.model for s in summaries)], rows)


def subset_table(summaries: Sequence[Summary], kind: str) -> str:
    """A row a task and language, a column a model, for one kind of task."""
    keys = dict.fromkeys(
        (name, subset)
        for s in summaries
        for name, task in s.tasks.items()
        if task.kind == kind
        for subset in task.subsets
    )
    rows = []
    able = [s for s in summaries if any(task.kind == kind for task in s.tasks.values())]
    for name, subset in keys:
        scores = [s.tasks[name].subsets.get(subset) if name in s.tasks else None for s in able]
        best = max(score.value for score in scores if score)
        rows.append([name, subset, *(_cell(score, best) for score in scores)])
    return table(["task", "language", *(s.model for s in able)], rows)


def language_table(summary: Summary) -> str:
    """One model: a row a language, a column a task of several languages other than STS.

    Empty where it ran no such task.
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


def difference_table(a: Summary, b: Summary) -> str:
    """The lead of `a` over `b` on every task both ran on the same data; empty if there is none."""
    rows = []
    for name, task in sorted(a.tasks.items(), key=lambda item: _task_order(*item)):
        other = b.tasks.get(name)
        if other is None or other.revision != task.revision:
            continue
        lead = task.score.value - other.score.value
        spread = difference(task.draws, other.draws, lead)
        if spread is None:
            rows.append([name, f"{100 * lead:+.1f}", ""])
            continue
        low, high = spread
        mark = "better" if low > 0 else "worse" if high < 0 else "same"
        rows.append([name, f"{100 * lead:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", mark])
    return table(["task", "lead", "mark"], rows) if rows else ""


def paper_table(summary: Summary) -> str:
    """One model beside jina-embeddings-v3's published scores; empty if it shares no task."""
    rows = []
    for name, task in summary.tasks.items():
        published, language, note = PAPER_TASKS.get(name, (name, "", "the same task"))
        score = task.subsets.get(language, task.score)
        if published in PUBLISHED:
            rows.append([name, _cell(score, None), published, f"{PUBLISHED[published]:.1f}", note])
    header = ["task", summary.model, "the paper's task", "jina-embeddings-v3", "what it is"]
    return table(header, rows) if rows else ""


def comparisons(summaries: Sequence[Summary]) -> list[tuple[str, list[Summary]]]:
    """The variants of each comparison of each model, with the word that names the comparison."""
    found: dict[tuple[str, str], list[Summary]] = {}
    for word in VARIANTS:
        for summary in ordered([s for s in summaries if _word(s) == word]):
            found.setdefault((word, summary.model), []).append(summary)
    return [(word, variants) for (word, _), variants in found.items()]


def run_table(summaries: Sequence[Summary]) -> str:
    """Where and when each model ran."""
    rows = []
    for summary in summaries:
        minutes = sum(task.seconds for task in summary.tasks.values()) / 60
        rows.append(
            [summary.model, summary.revision, summary.machine, summary.date, f"{minutes:.0f}"]
        )
    return table(["model", "weights", "machine", "date", "minutes"], rows)


def group(name: str, task: TaskScore) -> str:
    """The report's column for a task."""
    if any(fnmatch(name, pattern) for pattern in LONG):
        return COLUMNS[-1]
    return GROUPS.get(task.kind, "other")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers.

    >>> print(table(["model", "STS"], [["a", "71.2"]]))
    | model | STS |
    |---|---:|
    | a | 71.2 |
    """
    lines = [header, *rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|---" + "|---:" * (len(header) - 1) + "|", *text[1:]])


def _cell(score: Score | None, best: float | None) -> str:
    if score is None:
        return NONE
    value = f"{100 * score.value:.1f}"
    value = f"**{value}**" if score.value == best else value
    if score.low is None or score.high is None:
        return value
    return f"{value} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _task_order(name: str, task: TaskScore) -> tuple[int, str, int]:
    stem, _, number = name.rpartition("-")
    column = COLUMNS.index(group(name, task))
    return (column, stem, int(number)) if number.isdigit() else (column, name, 0)


def _word(summary: Summary) -> str:
    """What a comparison varies; empty for a model as it is."""
    return summary.variant.partition(" ")[0]


def _natural(variant: str) -> list[int | str]:
    """Sorts late-64 before late-256."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", variant)]


def _dim(summary: Summary) -> int:
    return int(summary.variant.removeprefix("dim "))
