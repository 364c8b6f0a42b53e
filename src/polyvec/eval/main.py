"""The verbs of `polyvec eval`, as functions that a command line calls."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from polyvec.eval.local import local_tasks
from polyvec.eval.models import (
    BUNDLED,
    encoder_embed,
    encoder_meta,
    load_encoder,
    load_model,
    remembered,
    truncated,
)
from polyvec.eval.protocol import (
    ChooseAdapter,
    MtebEncoder,
    always,
    paper_adapter,
    retrieval_adapter,
)
from polyvec.eval.report import fill_summary, group_table, ordered, render_report, task_table
from polyvec.eval.run import evaluate
from polyvec.eval.summary import read_summaries

DATA = Path("../shared/data")
RESULTS = Path("docs/results")
REPORT = Path("docs/results.md")
README = Path("README.md")

ABLATION_TASKS = (
    "jsts-valid",
    "korsts-dev",
    "tydiqa-dev-en",
    "tydiqa-dev-ko",
    "tydiqa-dev-sw",
    "farstail-val",
    "banking77-dev",
    "arxiv-clustering-dev",
)
"""Small tasks of every kind, on which variants of one model are compared."""

Adapter = Literal["paper", "none", "retrieval", "separation", "classification", "text-matching"]

ADAPTERS: dict[Adapter, ChooseAdapter] = {
    "paper": paper_adapter,
    "none": always(None),
    "retrieval": retrieval_adapter,
    "separation": always("separation"),
    "classification": always("classification"),
    "text-matching": always("text-matching"),
}
"""Which adapter reads a text: the paper's choice by task, or one for everything."""


def run(
    models: tuple[str, ...] = (BUNDLED,),
    /,
    *,
    tasks: tuple[str, ...] = (),
    data: Path = DATA,
    results: Path = RESULTS,
    adapter: Adapter = "paper",
    device: str = "auto",
) -> None:
    """Score models on local task folders with mteb, and print a table.

    `polyvec eval run` scores the bundled model on everything. Beside it:
    `polyvec eval run polyvec-mini all-MiniLM-L6-v2 tf-idf bm25 st:FOLDER`. A killed run goes on
    where it was.

    Args:
        models: polyvec-mini, a polyvec model (folder or hub name), all-MiniLM-L6-v2, tf-idf,
            bm25, or st:FOLDER for a sentence-transformers model.
        tasks: Names (`tydiqa-*`) or types (sts, retrieval, bitext, classification, clustering,
            pair_classification, longdoc); all if none.
        data: A folder of task folders, or one that holds it as `eval/`.
        results: Where scores are kept, one JSON a model.
        adapter: The paper's choice by task, or one adapter for everything.
        device: What polyvec's models run on.

    """
    chosen = local_tasks(data, tasks)
    variant = "" if adapter == "paper" else f"adapter {adapter}"
    summaries = []
    for name in models:
        model = load_model(name, choose=ADAPTERS[adapter], device=device)
        summaries.append(evaluate(model, chosen, results=results, variant=variant))
    sys.stdout.write(task_table(ordered(summaries)) + "\n")


def dims(
    model: str = BUNDLED,
    /,
    *,
    tasks: tuple[str, ...] = ABLATION_TASKS,
    data: Path = DATA,
    results: Path = RESULTS,
    device: str = "auto",
) -> None:
    """Score one polyvec model at each of its Matryoshka dims, and print a table."""
    chosen = local_tasks(data, tasks)
    encoder, meta = load_encoder(model, device), encoder_meta(model)
    embed = remembered(encoder_embed(encoder))
    summaries = []
    for dim in encoder.config.dims:
        cut = MtebEncoder(truncated(embed, dim), meta)
        summaries.append(evaluate(cut, chosen, results=results, variant=f"dim {dim}"))
    sys.stdout.write(group_table(summaries, "dim") + "\n")


def adapters(
    model: str = BUNDLED,
    /,
    *,
    tasks: tuple[str, ...] = ABLATION_TASKS,
    data: Path = DATA,
    results: Path = RESULTS,
    device: str = "auto",
) -> None:
    """Score one polyvec model with each adapter, and with none, on every kind of task."""
    chosen = local_tasks(data, tasks)
    embed, meta = encoder_embed(load_encoder(model, device)), encoder_meta(model)
    summaries = []
    for name, choose in ADAPTERS.items():
        fixed = MtebEncoder(embed, meta, choose=choose)
        summaries.append(evaluate(fixed, chosen, results=results, variant=f"adapter {name}"))
    sys.stdout.write(group_table(summaries, "adapter") + "\n")


def report(*, results: Path = RESULTS, out: Path = REPORT, readme: Path = README) -> None:
    """Write the tables of all results to a Markdown page, and the first of them to the README."""
    summaries = read_summaries(results)
    out.write_text(render_report(summaries))
    sys.stdout.write(f"wrote {out}\n")
    if readme.exists():
        readme.write_text(fill_summary(readme.read_text(), summaries))
        sys.stdout.write(f"wrote the table of {readme}\n")


VERBS: dict[str, Callable[..., None]] = {
    "run": run,
    "dims": dims,
    "adapters": adapters,
    "report": report,
}
"""`polyvec eval VERB ...`"""
