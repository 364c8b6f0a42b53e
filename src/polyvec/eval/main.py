"""The verbs of `polyvec eval`, as functions that a command line calls."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter
from mteb.abstasks import AbsTask

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


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What is scored, on what, and where the scores go: options of every verb that scores."""

    tasks: tuple[str, ...] = ()
    """Names (`tydiqa-*`) or types (sts, retrieval, bitext, classification, clustering,
    pair_classification, longdoc). `run` takes all if none are given; comparisons take some small
    ones."""

    data: Path = DATA
    """A folder of task folders, or one that holds it as `eval/`."""

    results: Path = RESULTS
    """Where scores are kept, one JSON a model."""

    device: str = "auto"
    """What polyvec's models run on."""

    whole: bool = False
    """Cut no table, and leave out no long document: about an hour more on two CPU cores."""

    def chosen(self, default: tuple[str, ...] = ()) -> list[AbsTask]:
        """The tasks asked for, else those of `default`."""
        return local_tasks(self.data, self.tasks or default, whole=self.whole)


HERE = Where()


def run(
    models: tuple[str, ...] = (BUNDLED,),
    /,
    *,
    adapter: Adapter = "paper",
    where: Where = HERE,
) -> None:
    """Score models on local task folders with mteb, and print a table.

    `polyvec eval run` scores the bundled model on everything. Beside it:
    `polyvec eval run polyvec-mini all-MiniLM-L6-v2 tf-idf bm25 st:FOLDER`. A killed run goes on
    where it was.

    Args:
        models: polyvec-mini, a polyvec model (folder or hub name), all-MiniLM-L6-v2, tf-idf,
            bm25, or st:FOLDER for a sentence-transformers model.
        adapter: The paper's choice by task, or one adapter for everything.
        where: Options that all verbs share.

    """
    tasks = where.chosen()
    variant = "" if adapter == "paper" else f"adapter {adapter}"
    summaries = []
    for name in models:
        model = load_model(name, choose=ADAPTERS[adapter], device=where.device)
        summaries.append(evaluate(model, tasks, results=where.results, variant=variant))
    sys.stdout.write(task_table(ordered(summaries)) + "\n")


def dims(model: str = BUNDLED, /, *, where: Where = HERE) -> None:
    """Score one polyvec model at each of its Matryoshka dims, and print a table."""
    encoder = load_encoder(model, where.device)
    embed = remembered(encoder_embed(encoder))
    cuts = {
        str(dim): MtebEncoder(truncated(embed, dim), encoder_meta(model))
        for dim in encoder.config.dims
    }
    compare("dim", cuts, where, ABLATION_TASKS)


def adapters(model: str = BUNDLED, /, *, where: Where = HERE) -> None:
    """Score one polyvec model with each adapter, and with none, on every kind of task."""
    embed, meta = encoder_embed(load_encoder(model, where.device)), encoder_meta(model)
    fixed = {name: MtebEncoder(embed, meta, choose=choose) for name, choose in ADAPTERS.items()}
    compare("adapter", fixed, where, ABLATION_TASKS)


def compare(
    what: str, variants: Mapping[str, MtebEncoder], where: Where, tasks: tuple[str, ...]
) -> None:
    """Score variants of one model, keep each as a result of its own, and print a table."""
    chosen = where.chosen(tasks)
    summaries = [
        evaluate(model, chosen, results=where.results, variant=f"{what} {name}")
        for name, model in variants.items()
    ]
    sys.stdout.write(group_table(summaries, what) + "\n")


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
