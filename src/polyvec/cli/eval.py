"""`polyvec eval`: score models on tasks, compare variants of one model, and write the report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cyclopts import App, Parameter

from polyvec.terminal import ExitStatus, note

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from polyvec.eval.protocol import ChooseAdapter, Model

BUNDLED = "polyvec-mini"
"""The name of the bundled model in results."""

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

CHUNK_TOKENS = (64, 128, 256, 512)
"""Chunk sizes that late chunking is compared at."""

WINDOW_TOKENS = 512
"""Length of the windows of long late chunking in this comparison."""

Adapter = Literal["paper", "none", "retrieval", "separation", "classification", "text-matching"]
"""The paper's choice by task, or one adapter for every task."""

eval = App(name="eval", help="Score models on tasks, and compare variants of one model.")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """Options of every verb that scores: the tasks, their data, and the folder for the scores."""

    tasks: tuple[str, ...] = ()
    """A name of task folders (`tydiqa-*`), a type of them (for example sts or retrieval), or the
    name of one of mteb's own tasks, which mteb downloads. Repeat the option to name several. By
    default, `run` scores all task folders, and a comparison scores some small ones."""

    benchmark: str = ""
    """The name of one of mteb's benchmarks, for example "MTEB(eng, v2)", "MTEB(Multilingual, v2)"
    or "LongEmbed". Its tasks replace the task folders."""

    data: Path | None = None
    """The folder of the task folders, or a folder that holds them in eval/. The default is the
    environment variable POLYVEC_DATA."""

    results: Path = RESULTS
    """The folder for the scores. It has one JSON file per model."""

    device: str = "auto"
    """The device for polyvec's models: cpu, cuda, cuda:1 or auto."""

    whole: bool = True
    """Score every row of every table. With --no-whole, large tables are shortened (a corpus to 300
    documents, which makes searching it easier) and tasks with very long documents are left out,
    unless they are named; a sentence for each says so."""

    def select_tasks(self, default: Sequence[str] = ()) -> list["AbsTask"]:
        """Return the tasks that the options name, or those of `default` if they name none."""
        from polyvec.data_folder import data_folder, has_data_folder
        from polyvec.eval.mteb_tasks import benchmark_tasks, registered_tasks
        from polyvec.eval.task_folders import local_tasks, task_names

        if self.benchmark:
            return benchmark_tasks(self.benchmark)
        # A folder's task goes before one of mteb's that has the same name.
        own = task_names(data_folder(self.data)) if has_data_folder(self.data) else set[str]()
        remote = registered_tasks([name for name in self.tasks if name not in own])
        names = [name for name in self.tasks if name not in remote]
        if remote and not names:
            return list(remote.values())
        data = data_folder(self.data)
        local = local_tasks(data, names or default, whole=self.whole, report=note)
        return [*remote.values(), *local]


DEFAULTS = EvalOptions()


@eval.command
def run(
    models: tuple[str, ...] = (BUNDLED,),
    /,
    *,
    adapter: Adapter = "paper",
    against: Path | None = None,
    model: str = "",
    api_key: str = "",
    options: EvalOptions = DEFAULTS,
) -> ExitStatus:
    """Score models on tasks with mteb, and print a table.

    A score is kept, with everything that decides it, and is only computed again if that changed:
    the model's weights, config and tokenizer, the data, or the version of the code. If the command
    is killed, the same command continues where it stopped. With --against, the exit status is 1 if
    a score is lower than before.

    polyvec eval run --data data/

    polyvec eval run polyvec-mini all-MiniLM-L6-v2 tf-idf bm25 --data data/

    polyvec eval run path/to/model --data data/ --against results/polyvec-mini.json

    polyvec eval run https://api.example.org/v1 --model small --adapter none --data data/

    Parameters
    ----------
    models
        The models: polyvec-mini, a model folder or a name on the Hugging Face hub,
        all-MiniLM-L6-v2, tf-idf, bm25, st:NAME for a sentence-transformers model (a folder or a
        name on the hub; its own prompts are used), or the address of a running server with
        OpenAI's API, for example http://localhost:8000/v1 (add --adapter none if the server knows
        no tasks).
    adapter
        Which adapter embeds a text: the paper's choice by task, or one adapter for every task.
    against
        A result file to compare with. A score is lower if it is below its interval there, or if a
        score without an interval (clustering) fell by more than a point.
    model
        The model of a running server. The default is the first that it lists.
    api_key
        The API key of a running server. The default is the environment variable OPENAI_API_KEY,
        which other users of the machine cannot read.
    options
        The options that all verbs share.

    """
    from polyvec.eval.markdown_report import ordered, task_table
    from polyvec.eval.models import load_model
    from polyvec.eval.results import read_summary, regressions
    from polyvec.eval.runner import evaluate

    # Read first, because this run may replace the file.
    before = None if against is None else read_summary(against)
    tasks = options.select_tasks()
    chosen = {task.metadata.name for task in tasks}
    variant = "" if adapter == "paper" else f"adapter {adapter}"
    summaries = []
    for name in models:
        loaded = load_model(
            name, choose=_choose(adapter), device=options.device, served_model=model, key=api_key
        )
        summary = evaluate(loaded, tasks, results=options.results, variant=variant, argument=name)
        if missing := chosen - summary.tasks.keys():
            note(f"{name} can only search, and was not run on {', '.join(sorted(missing))}")
        # The file may also hold scores of earlier runs, perhaps on other data.
        scored = {task: score for task, score in summary.tasks.items() if task in chosen}
        summaries.append(replace(summary, tasks=scored))
    sys.stdout.write(task_table(ordered(summaries)) + "\n")
    if not any(summary.tasks for summary in summaries):
        return ExitStatus.INCOMPLETE
    if before is None:
        return ExitStatus.DONE
    worse = [line for summary in summaries for line in regressions(before, summary, chosen)]
    sys.stdout.write("\n".join(worse) + "\n" if worse else f"no score fell below {against}\n")
    return ExitStatus.INCOMPLETE if worse else ExitStatus.DONE


@eval.command
def dims(model: str = BUNDLED, /, *, options: EvalOptions = DEFAULTS) -> None:
    """Score one model at each of its Matryoshka sizes, and print a table.

    Each text is encoded once, and its vector is truncated to every size. By default, some small
    tasks of every kind are scored.

    polyvec eval dims --data data/

    Parameters
    ----------
    model
        A polyvec model: polyvec-mini, a folder, or a name on the Hugging Face hub.
    options
        The options that all verbs share.

    """
    from polyvec.eval.models import encoder_embed, encoder_meta, load_encoder
    from polyvec.eval.protocol import MtebEncoder
    from polyvec.eval.variants import cached, truncated

    encoder = load_encoder(model, options.device)
    embed = cached(encoder_embed(encoder))
    cuts = {
        str(dim): MtebEncoder(truncated(embed, dim), encoder_meta(model))
        for dim in encoder.config.dims
    }
    compare("dim", cuts, model, options, ABLATION_TASKS)


@eval.command
def adapters(model: str = BUNDLED, /, *, options: EvalOptions = DEFAULTS) -> None:
    """Score one model with each adapter and with none, and print a table.

    The table also has the paper's choice of an adapter by task. By default, some small tasks of
    every kind are scored.

    polyvec eval adapters --data data/

    Parameters
    ----------
    model
        A polyvec model: polyvec-mini, a folder, or a name on the Hugging Face hub.
    options
        The options that all verbs share.

    """
    from polyvec.eval.models import encoder_embed, encoder_meta, load_encoder
    from polyvec.eval.protocol import MtebEncoder
    from polyvec.eval.variants import cached

    # The paper's choice is always one of the other adapters, whose vectors are kept.
    embed = cached(encoder_embed(load_encoder(model, options.device)))
    meta = encoder_meta(model)
    fixed = {name: MtebEncoder(embed, meta, choose=_choose(name)) for name in get_args(Adapter)}
    compare("adapter", fixed, model, options, ABLATION_TASKS)


@eval.command
def prompts(model: str = BUNDLED, /, *, options: EvalOptions = DEFAULTS) -> None:
    """Score one model with and without its instructions, and print a table.

    Only retrieval has instructions, so retrieval tasks are scored by default. The adapters are
    used in both cases.

    polyvec eval prompts --data data/

    Parameters
    ----------
    model
        A polyvec model: polyvec-mini, a folder, or a name on the Hugging Face hub.
    options
        The options that all verbs share.

    """
    from polyvec.eval.models import encoder_embed, encoder_meta, load_encoder
    from polyvec.eval.protocol import MtebEncoder
    from polyvec.eval.variants import without_instructions

    encoder, meta = load_encoder(model, options.device), encoder_meta(model)
    variants = {
        "with": MtebEncoder(encoder_embed(encoder), meta),
        "without": MtebEncoder(encoder_embed(without_instructions(encoder)), meta),
    }
    compare("instruction", variants, model, options, RETRIEVAL_TASKS)


@eval.command
def long(model: str = BUNDLED, /, *, options: EvalOptions = DEFAULTS) -> None:
    """Score one model on long texts at rotary base 10,000 and 20,000, and print a table.

    Models are trained at base 10,000 and used at 20,000 (arXiv:2409.10173, section 3). The tasks
    are passkeys and needles of up to 2,048 tokens. The second example scores all lengths, which
    takes half an hour.

    polyvec eval long --data data/

    polyvec eval long --data data/ --tasks "passkey-*" --tasks "needle-*"

    Parameters
    ----------
    model
        A polyvec model: polyvec-mini, a folder, or a name on the Hugging Face hub.
    options
        The options that all verbs share.

    """
    from polyvec.eval.models import encoder_meta, load_encoder
    from polyvec.eval.protocol import MtebEncoder
    from polyvec.eval.variants import at_base

    encoder, meta = load_encoder(model, options.device), encoder_meta(model)
    variants = {
        f"{base:.0f}": MtebEncoder(at_base(encoder, base), meta) for base in (10_000.0, 20_000.0)
    }
    compare("base", variants, model, options, LONG_TASKS)


@eval.command
def quantised(model: str = BUNDLED, /, *, options: EvalOptions = DEFAULTS) -> None:
    """Score one model with float32, int8 and binary vectors, and print a table.

    Binary vectors are scored twice: alone, and with rescoring, in which the first 40 documents of
    each search are scored again by their int8 vectors. Retrieval tasks are scored by default.

    polyvec eval quantised --data data/

    Parameters
    ----------
    model
        A polyvec model: polyvec-mini, a folder, or a name on the Hugging Face hub.
    options
        The options that all verbs share.

    """
    from polyvec.eval.models import encoder_embed, encoder_meta, load_encoder
    from polyvec.eval.protocol import MtebEncoder
    from polyvec.eval.variants import as_binary, as_int8, cached, rescore

    encoder, meta = load_encoder(model, options.device), encoder_meta(model)
    embed = cached(encoder_embed(encoder))
    variants = {
        "float32": MtebEncoder(embed, meta),
        "int8": MtebEncoder(as_int8(embed), meta),
        "bits": MtebEncoder(as_binary(embed), meta),
        "bits rescored": MtebEncoder(embed, meta, compare=rescore),
    }
    compare("vectors", variants, model, options, RETRIEVAL_TASKS)


@eval.command
def late_chunking(
    model: str = BUNDLED,
    /,
    *,
    sizes: tuple[int, ...] = CHUNK_TOKENS,
    window: int = WINDOW_TOKENS,
    adapter: Adapter = "paper",
    options: EvalOptions = DEFAULTS,
) -> None:
    """Search long documents by chunks, with and without late chunking, and print a table.

    The score of a document is the score of its best chunk (arXiv:2409.04701). `naive` embeds each
    chunk alone, `late` embeds it in the context of the whole document, `long` in the context of a
    window, and `whole` has one embedding per document. By default, passkeys and needles of 1,024
    tokens are scored.

    polyvec eval late-chunking --data data/ --sizes 64 --sizes 256

    Parameters
    ----------
    model
        A polyvec model: polyvec-mini, a folder, or a name on the Hugging Face hub.
    sizes
        The sizes of chunks, in tokens.
    window
        The length of the windows of `long`, in tokens.
    adapter
        Which adapter embeds a text: the paper's choice by task, or one adapter for every task.
    options
        The options that all verbs share.

    """
    from polyvec.eval.chunk_search import Chunking, ChunkSearch
    from polyvec.eval.models import encoder_meta, load_encoder

    encoder, meta = load_encoder(model, options.device), encoder_meta(model)
    cuts = {"whole": Chunking(tokens=None)}
    for size in sizes:
        cuts[f"naive-{size}"] = Chunking(tokens=size, late=False)
        cuts[f"late-{size}"] = Chunking(tokens=size)
        # A score is filed under the name of its variant, so other windows have other names.
        long = f"long-{size}" if window == WINDOW_TOKENS else f"long-{size}-window-{window}"
        cuts[long] = Chunking(tokens=size, window=window)
    choose = _choose(adapter)
    variants = {name: ChunkSearch(encoder, meta, cut, choose) for name, cut in cuts.items()}
    what = "chunks" if adapter == "paper" else f"chunks by {adapter}"
    # mteb's protocol has room for options of the future.
    compare(what, variants, model, options, CHUNKED_TASKS)  # pyright: ignore[reportArgumentType]


@eval.command
def failures(model: str = BUNDLED, /, *, options: EvalOptions = DEFAULTS) -> None:
    """Score one model on the four failure cases, and print a table.

    The cases are misleading syntax, named entities, polar questions, and documents of low quality
    (arXiv:2409.10173, section 5.3). `polyvec train failures` writes a folder of them.

    polyvec eval failures --data made/

    Parameters
    ----------
    model
        A polyvec model: polyvec-mini, a folder, or a name on the Hugging Face hub.
    options
        The options that all verbs share.

    """
    from polyvec.eval.models import encoder_embed, encoder_meta, load_encoder
    from polyvec.eval.protocol import MtebEncoder

    encoder, meta = load_encoder(model, options.device), encoder_meta(model)
    embed = encoder_embed(encoder)
    variants = {
        "retrieval": MtebEncoder(embed, meta),
        "none": MtebEncoder(embed, meta, choose=_choose("none")),
    }
    compare("failures", variants, model, options, ("failures-*",))


@eval.command
def report(
    *, results: Path = RESULTS, out: Path = REPORT, page: Path = PAGE, readme: Path = README
) -> None:
    """Write all results to a Markdown page, an HTML page with plots, and the table of a README.

    The pages are made from the result files alone. No model is loaded.

    polyvec eval report

    Parameters
    ----------
    results
        The folder for the scores. It has one JSON file per model.
    out
        The Markdown page to write.
    page
        The HTML page to write.
    readme
        A file with a table between the markers `results: start` and `results: end`. If it does not
        exist, it is left out.

    """
    from polyvec.eval.html_report import render_page
    from polyvec.eval.markdown_report import fill_summary, render_report
    from polyvec.eval.results import read_summaries

    summaries = read_summaries(results)
    out.write_text(render_report(summaries))
    page.write_text(render_page(summaries))
    sys.stdout.write(f"wrote {out} and {page}\n")
    if readme.exists():
        readme.write_text(fill_summary(readme.read_text(), summaries))
        sys.stdout.write(f"wrote the table of {readme}\n")


def compare(
    what: str,
    variants: Mapping[str, "Model"],
    model: str,
    options: EvalOptions,
    tasks: Sequence[str],
) -> None:
    """Score variants of one model, keep each as a result of its own, and print a table."""
    from polyvec.eval.markdown_report import variant_table
    from polyvec.eval.runner import evaluate

    selected = options.select_tasks(tasks)
    summaries = [
        evaluate(
            variant,
            selected,
            results=options.results,
            variant=f"{what} {name}",
            argument=model,
        )
        for name, variant in variants.items()
    ]
    sys.stdout.write(variant_table(summaries, what) + "\n")


def _choose(adapter: Adapter) -> "ChooseAdapter":
    """Return the function that chooses the adapter of a text."""
    from polyvec.eval.protocol import always, paper_adapter, retrieval_adapter

    if adapter == "paper":
        return paper_adapter
    if adapter == "retrieval":
        return retrieval_adapter
    return always(None if adapter == "none" else adapter)
