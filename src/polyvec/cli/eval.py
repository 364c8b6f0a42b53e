"""The verbs of `polyvec eval`, as functions that a command line calls."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter
from mteb.abstasks import AbsTask

from polyvec.data_folder import data_folder
from polyvec.eval.chunk_search import Chunking, ChunkSearch
from polyvec.eval.html_report import render_page
from polyvec.eval.markdown_report import (
    fill_summary,
    ordered,
    render_report,
    task_table,
    variant_table,
)
from polyvec.eval.models import BUNDLED, encoder_embed, encoder_meta, load_encoder, load_model
from polyvec.eval.mteb_tasks import benchmark_tasks, registered_tasks
from polyvec.eval.protocol import (
    ChooseAdapter,
    Model,
    MtebEncoder,
    always,
    paper_adapter,
    retrieval_adapter,
)
from polyvec.eval.results import read_summaries, read_summary, regressions
from polyvec.eval.runner import evaluate
from polyvec.eval.task_folders import local_tasks
from polyvec.eval.variants import (
    as_binary,
    as_int8,
    at_base,
    cached,
    rescore,
    truncated,
    without_instructions,
)

RESULTS = Path("results")
REPORT = Path("results/README.md")
PAGE = Path("results/results.html")
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

RETRIEVAL_TASKS = ("tydiqa-dev-en", "tydiqa-dev-ko", "tydiqa-dev-sw")

LONG_TASKS = tuple(
    f"{kind}-{length}" for kind in ("passkey", "needle") for length in (256, 512, 1024, 2048)
)

CHUNKED_TASKS = ("passkey-1024", "needle-1024")

CHUNK_SIZES = (64, 128, 256, 512)
"""In tokens."""

WINDOW = 512
"""Tokens that long late chunking reads together here."""

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
class EvalOptions:
    """What is scored, on what, and where the scores go: options of every verb that scores."""

    tasks: tuple[str, ...] = ()
    """Names (`tydiqa-*`) or types (sts, retrieval, bitext, classification, clustering,
    pair_classification, longdoc) of task folders, or names of mteb's own tasks, whose data comes
    from the hub. `run` takes all folders if none are given; comparisons take some small ones."""

    benchmark: str = ""
    """One of mteb's benchmarks in place of task folders: "MTEB(eng, v2)",
    "MTEB(Multilingual, v2)", "LongEmbed" ..."""

    data: Path | None = None
    """A folder of task folders, or a folder that contains it as `eval/`. The default is the folder
    in the environment variable `POLYVEC_DATA`."""

    results: Path = RESULTS
    """Folder of scores, with one JSON file per model."""

    device: str = "auto"
    """What polyvec's models run on."""

    whole: bool = False
    """Cut no table, and leave out no long document: about an hour more on two CPU cores."""

    def chosen(self, default: tuple[str, ...] = ()) -> list[AbsTask]:
        """The tasks asked for, else those of `default`."""
        if self.benchmark:
            return benchmark_tasks(self.benchmark)
        remote = registered_tasks(self.tasks)
        names = [name for name in self.tasks if name not in remote]
        if remote and not names:
            return list(remote.values())
        return [
            *remote.values(),
            *local_tasks(data_folder(self.data), names or default, whole=self.whole),
        ]


DEFAULTS = EvalOptions()


def run(
    models: tuple[str, ...] = (BUNDLED,),
    /,
    *,
    adapter: Adapter = "paper",
    against: Path | None = None,
    where: EvalOptions = DEFAULTS,
) -> None:
    """Score models on local task folders with mteb, and print a table.

    `polyvec eval run` scores the bundled model on everything. Beside it:
    `polyvec eval run polyvec-mini all-MiniLM-L6-v2 tf-idf bm25 st:FOLDER`. A killed run goes on
    where it was.

    Args:
        models: polyvec-mini, a polyvec model (folder or hub name), all-MiniLM-L6-v2, tf-idf,
            bm25, st:FOLDER for a sentence-transformers model, or the address of a running
            server of OpenAI's form, such as http://localhost:8000/v1 (with --adapter none if it
            knows no tasks).
        adapter: The paper's choice by task, or one adapter for everything.
        against: A result file. The exit status is 1 if a score fell below its interval there;
            where a score has no interval (clustering), by more than a point.
        where: Options that all verbs share.

    """
    # Read first: it may be the file that this run replaces.
    before = None if against is None else read_summary(against)
    tasks = where.chosen()
    variant = "" if adapter == "paper" else f"adapter {adapter}"
    summaries = []
    for name in models:
        model = load_model(name, choose=ADAPTERS[adapter], device=where.device)
        summaries.append(evaluate(model, tasks, results=where.results, variant=variant))
    sys.stdout.write(task_table(ordered(summaries)) + "\n")
    if before is None:
        return
    chosen = {task.metadata.name for task in tasks}
    worse = [line for summary in summaries for line in regressions(before, summary, chosen)]
    sys.stdout.write("\n".join(worse) + "\n" if worse else f"no score fell below {against}\n")
    if worse:
        raise SystemExit(1)


def dims(model: str = BUNDLED, /, *, where: EvalOptions = DEFAULTS) -> None:
    """Score one polyvec model at each of its Matryoshka dims, and print a table."""
    encoder = load_encoder(model, where.device)
    embed = cached(encoder_embed(encoder))
    cuts = {
        str(dim): MtebEncoder(truncated(embed, dim), encoder_meta(model))
        for dim in encoder.config.dims
    }
    compare("dim", cuts, where, ABLATION_TASKS)


def adapters(model: str = BUNDLED, /, *, where: EvalOptions = DEFAULTS) -> None:
    """Score one polyvec model with each adapter, and with none, on every kind of task."""
    # The paper's choice is always one of the other adapters, which then need not read again.
    embed = cached(encoder_embed(load_encoder(model, where.device)))
    meta = encoder_meta(model)
    fixed = {name: MtebEncoder(embed, meta, choose=choose) for name, choose in ADAPTERS.items()}
    compare("adapter", fixed, where, ABLATION_TASKS)


def prompts(model: str = BUNDLED, /, *, where: EvalOptions = DEFAULTS) -> None:
    """Score one polyvec model with and without its instructions, and print a table.

    Only retrieval has instructions; the adapters are used in both cases.
    """
    encoder, meta = load_encoder(model, where.device), encoder_meta(model)
    variants = {
        "with": MtebEncoder(encoder_embed(encoder), meta),
        "without": MtebEncoder(encoder_embed(without_instructions(encoder)), meta),
    }
    compare("instruction", variants, where, RETRIEVAL_TASKS)


def long(model: str = BUNDLED, /, *, where: EvalOptions = DEFAULTS) -> None:
    """Score one polyvec model on passkeys and needles by length, at rotary base 10,000 and 20,000.

    Models are trained at base 10,000 and read at 20,000 (arXiv:2409.10173, section 3). Lengths up
    to 2,048 tokens, unless `--tasks "passkey-*" "needle-*"` asks for all, which takes half an
    hour.
    """
    encoder, meta = load_encoder(model, where.device), encoder_meta(model)
    variants = {
        f"{base:.0f}": MtebEncoder(at_base(encoder, base), meta) for base in (10_000.0, 20_000.0)
    }
    compare("base", variants, where, LONG_TASKS)


def quantised(model: str = BUNDLED, /, *, where: EvalOptions = DEFAULTS) -> None:
    """Score one polyvec model in float32, int8 and bits, and print a table.

    Bits also with rescoring, on retrieval: the first 40 documents of a search by bits are scored
    again by their int8 vectors.
    """
    encoder, meta = load_encoder(model, where.device), encoder_meta(model)
    embed = cached(encoder_embed(encoder))
    variants = {
        "float32": MtebEncoder(embed, meta),
        "int8": MtebEncoder(as_int8(embed), meta),
        "bits": MtebEncoder(as_binary(embed), meta),
        "bits rescored": MtebEncoder(embed, meta, compare=rescore),
    }
    compare("vectors", variants, where, RETRIEVAL_TASKS)


def late_chunking(
    model: str = BUNDLED,
    /,
    *,
    sizes: tuple[int, ...] = CHUNK_SIZES,
    window: int = WINDOW,
    adapter: Adapter = "paper",
    where: EvalOptions = DEFAULTS,
) -> None:
    """Search long documents by their chunks, embedded alone and late, and print a table.

    A document scores what its best chunk scores. `naive` embeds each chunk by itself, `late` after
    the whole document was read, `long` after windows of it were, and `whole` has one vector a
    document (arXiv:2409.04701). Passkeys and needles of 1,024 tokens, unless `--tasks` names
    others, such as qmsum-val.

    Args:
        model: A polyvec model.
        sizes: Tokens of a chunk.
        window: Tokens that `long` reads together.
        adapter: The paper's choice by task, or one adapter for everything.
        where: Options that all verbs share.

    """
    encoder, meta = load_encoder(model, where.device), encoder_meta(model)
    cuts = {"whole": Chunking(tokens=None)}
    for size in sizes:
        cuts[f"naive-{size}"] = Chunking(tokens=size, late=False)
        cuts[f"late-{size}"] = Chunking(tokens=size)
        cuts[f"long-{size}"] = Chunking(tokens=size, window=window)
    choose = ADAPTERS[adapter]
    variants = {name: ChunkSearch(encoder, meta, cut, choose) for name, cut in cuts.items()}
    what = "chunks" if adapter == "paper" else f"chunks by {adapter}"
    # mteb's protocol has room for options of the future.
    compare(what, variants, where, CHUNKED_TASKS)  # pyright: ignore[reportArgumentType]


def failures(model: str = BUNDLED, /, *, where: EvalOptions = DEFAULTS) -> None:
    """Score one polyvec model on the four failure cases, and print a table.

    `polyvec train failures` writes a folder of them, which `--data` names: misleading syntax, named
    entities, polar questions, and documents of low quality (arXiv:2409.10173, section 5.3).
    """
    encoder, meta = load_encoder(model, where.device), encoder_meta(model)
    embed = encoder_embed(encoder)
    variants = {
        "retrieval": MtebEncoder(embed, meta),
        "none": MtebEncoder(embed, meta, choose=always(None)),
    }
    compare("failures", variants, where, ("failures-*",))


def compare(
    what: str, variants: Mapping[str, Model], where: EvalOptions, tasks: tuple[str, ...]
) -> None:
    """Score variants of one model, keep each as a result of its own, and print a table."""
    chosen = where.chosen(tasks)
    summaries = [
        evaluate(model, chosen, results=where.results, variant=f"{what} {name}")
        for name, model in variants.items()
    ]
    sys.stdout.write(variant_table(summaries, what) + "\n")


def report(
    *, results: Path = RESULTS, out: Path = REPORT, page: Path = PAGE, readme: Path = README
) -> None:
    """Write all results to a Markdown page, an HTML page with plots, and the README's table."""
    summaries = read_summaries(results)
    out.write_text(render_report(summaries))
    page.write_text(render_page(summaries))
    sys.stdout.write(f"wrote {out} and {page}\n")
    if readme.exists():
        readme.write_text(fill_summary(readme.read_text(), summaries))
        sys.stdout.write(f"wrote the table of {readme}\n")


VERBS: dict[str, Callable[..., None]] = {
    "run": run,
    "dims": dims,
    "adapters": adapters,
    "prompts": prompts,
    "long": long,
    "quantised": quantised,
    "late-chunking": late_chunking,
    "failures": failures,
    "report": report,
}
"""`polyvec eval VERB ...`"""
