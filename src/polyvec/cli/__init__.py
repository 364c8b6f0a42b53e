"""The command line. Each verb imports its room when it is called, so `--help` is quick."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from polyvec.terminal import json_line, note, plain

EXTRAS = {
    "bm25s": "train",
    "datasketch": "train",
    "filelock": "search",
    "huggingface_hub": "hub",
    "lancedb": "search",
    "matplotlib": "search",
    "mteb": "eval",
    "opentelemetry": "traces",
    "prometheus_client": "server",
    "py3langid": "train",
    "pyarrow": "search",
    "pydantic": "server",
    "pypdf": "search",
    "sentence_transformers": "eval",
    "sklearn": "search",
    "starlette": "server",
    "tensorboard": "train",
    "torch": "torch",
    "uvicorn": "server",
    "watchfiles": "search",
}
"""Which extra brings a module that may be missing."""

SEARCHING = {
    "search": """\
Find the passages of a folder's files that answer a question, by meaning and by words.

The folder is indexed first; later calls index only what has changed.

polyvec search notes/ "how do I stop a nosebleed?"

polyvec search notes/ "pain au levain" --top 3 --path "*.md" --since 2026-01-31 --json

polyvec search notes/ --near notes/bread.txt

polyvec search notes/ --watch
""",
    "dedupe": """\
Find files of a folder that say the same, in other words or another language too.

Nothing is deleted: groups are listed, each copy with its likeness to the group's first file.

polyvec dedupe notes/

polyvec dedupe notes/ --threshold 0.9 --json
""",
    "cluster": """\
Find what a folder is about: its passages in clusters, each with the words that set it apart.

polyvec cluster notes/ --map topics.html

polyvec cluster notes/ --each file --min-size 5 --json
""",
    "classify": """\
Give each text a label: by the labels' names alone, or as in a file of labelled examples.

polyvec classify "They won the final 3:1" --labels sport --labels politics

polyvec classify --input mails.csv --examples labelled.csv --json
""",
}
"""The help of verbs in `search/main.py`. It stands here since `polyvec --help` shows its first
lines, and must not take the seconds that LanceDB needs to be imported."""

app = App(
    name="polyvec",
    help="Multilingual, multi-task text embeddings: encode texts, and search files by meaning.",
    help_format="plaintext",
    version=lambda: _version(),
    version_flags=["--version"],
)

app.command(evaluation := App(name="eval", help="Score models on the local tasks."))
for verb in (
    "run",
    "dims",
    "adapters",
    "prompts",
    "long",
    "quantised",
    "late-chunking",
    "failures",
    "report",
):
    # A name to import, read only when this verb is called.
    evaluation.command(f"polyvec.cli.eval:{verb.replace('-', '_')}", name=verb)
app.command("polyvec.cli.serve:serve", name="serve", help="Serve models: the embeddings API.")
for verb, told in SEARCHING.items():
    app.command(f"polyvec.cli.search:{verb}", name=verb, help=told)
app.command(training := App(name="train", help="Train models, and add tasks to them."))
for verb in ("recipe", "adapter", "negatives", "failures"):
    training.command(f"polyvec.cli.train:{verb}", name=verb)


@app.command
def embed(
    *texts: str,
    input: Annotated[list[Path] | None, Parameter(name=["--input", "-i"], negative=())] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    format: Literal["jsonl", "npy", "parquet"] | None = None,
    task: str | None = None,
    dim: int | None = None,
    model: str | None = None,
) -> None:
    """Embed texts: arguments, files, or one a line from standard input.

    polyvec embed "Hello" "Grüß Gott" --task text-matching

    polyvec embed --input notes.txt --output vectors.npy --dim 128

    cat texts.jsonl | polyvec embed -i - -o vectors.parquet --task retrieval.passage

    Parameters
    ----------
    texts
        The texts. Without any, and without --input, one a line is read from standard input.
    input
        Files with one text a line; in .jsonl files a line is a string or an object with "text",
        .csv and .tsv files have a column "text"; other fields are kept in .jsonl output. "-" is
        standard input. May be given again.
    output
        The file to write, whole or not at all; standard output (JSON lines) by default.
    format
        What to write; by default what the output file's name ends with, else jsonl.
    task
        What the vectors are for, e.g. retrieval.query; `polyvec info` lists a model's tasks.
    dim
        Numbers in each vector, one of the model's Matryoshka sizes; by default all.
    model
        A model folder or a name on the Hugging Face hub; by default the bundled model.

    """
    if texts and input:
        raise ValueError("give texts as arguments or with --input, not both")
    if not texts and not input and sys.stdin.isatty():
        raise ValueError('give texts, as in: polyvec embed "some text"; or --input FILE')
    kind = format or ("jsonl" if output is None else output.suffix[1:])
    if kind not in ("jsonl", "npy", "parquet"):
        raise ValueError(f"cannot tell the format from {output}; name it with --format")
    if output is None and kind != "jsonl":
        raise ValueError(f"{kind} is not for standard output; name a file with --output")
    from polyvec.encoder import Encoder
    from polyvec.records import read_records
    from polyvec.vector_files import write_vectors

    records = ({"text": text} for text in texts) if texts else read_records(input or [Path("-")])
    # Arguments are few, so it is the start that takes the time.
    encoder = Encoder.load(model, prepack=False if texts else None)
    dim = dim or encoder.config.width
    fed: deque[dict[str, Any]] = deque()
    vectors = encoder.encode_stream(_feed(records, fed), task=task, dim=dim)
    # The encoder reads a window ahead, so the records of its vectors wait in `fed`.
    rows = (([fed.popleft() for _ in part], part) for part in vectors)
    write_vectors(rows, output, kind, dim)


@app.command
def rerank(
    query: str,
    file: Annotated[Path, Parameter(name="FILE", allow_leading_hyphen=True)],
    /,
    *,
    by: Literal["dense", "sparse", "multi_vector", "hybrid"] = "dense",
    task: str = "retrieval",
    top: int | None = None,
    model: str | None = None,
    json: bool = False,
) -> None:
    """Sort texts by how well they answer a query: bi-encoder reranking.

    polyvec rerank "how do I stop a nosebleed?" candidates.txt --top 3

    cat candidates.jsonl | polyvec rerank "pain au levain" - --by hybrid --json

    Parameters
    ----------
    query
        What the texts may answer.
    file
        The candidates, one a line; in .jsonl files a string or an object with "text", in .csv
        files a row with a column "text", whose other fields --json keeps. "-" is standard input.
    by
        The score: cosine, shared tokens, MaxSim, or all three. All but dense need a model with
        heads; `polyvec info` tells.
    task
        The adapter for query and texts; "retrieval" is a pair, one adapter for each.
    top
        Texts to show; by default all.
    model
        A model folder or a name on the Hugging Face hub; by default the bundled model.
    json
        Print one JSON object a text, with its line (from 0) and the parts of its score.

    """
    if top is not None and top < 1:
        raise ValueError(f"--top is {top}, must be at least 1")
    from polyvec import reranking
    from polyvec.encoder import Encoder
    from polyvec.records import read_records

    records = list(read_records([file]))
    ranked = reranking.rerank(
        Encoder.load(model),
        query,
        [record["text"] for record in records],
        by=reranking.HYBRID if by == "hybrid" else by,
        task=reranking.RETRIEVAL if task == "retrieval" else task,
    )
    for one in ranked[:top]:
        record = records[one.index]
        if json:
            found = record | {"index": one.index, "score": one.score, "parts": one.parts}
            sys.stdout.write(json_line(found))
        else:
            text = " ".join(record["text"].split())
            sys.stdout.write(plain(f"{one.score:.3f}  {text}\n"))


@app.command
def info(model: str | None = None, /) -> None:
    """Describe a model: shape, parameters, tasks, dims, layout and size.

    polyvec info

    polyvec info path/to/model

    Parameters
    ----------
    model
        A model folder or a name on the Hugging Face hub; by default the bundled model.

    """
    import math

    from polyvec.checkpoint import detect_layout, load_checkpoint
    from polyvec.encoder import find_model

    folder = find_model(model)
    config, weights = load_checkpoint(folder)
    parameters = sum(math.prod(weight.shape) for weight in weights.values())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    facts = {
        "model": str(folder),
        "layout": detect_layout(folder),
        "parameters": f"{parameters:,}",
        "size on disk": f"{size / 1e6:,.1f} MB",
        "vocabulary": f"{config.vocab_size:,} pieces",
        "layers": f"{config.num_layers} of width {config.width}",
        "heads": f"{config.num_heads}, feed-forward {config.ffn_width:,}",
        "longest text": f"{config.max_tokens:,} tokens",
        "dims": ", ".join(map(str, config.dims)),
        "tasks": ", ".join(task.name for task in config.tasks) or "none",
        "adapters": f"rank {config.adapter_rank}" if config.tasks else "none",
        "sparse head": "yes" if config.sparse_head else "none",
        "token vectors": f"of {config.multi_vector_dim} numbers"
        if config.multi_vector_dim
        else "none",
    }
    for name, value in facts.items():
        sys.stdout.write(f"{name:13} {value}\n")


@app.command
def export(
    model: str, folder: Annotated[Path, Parameter(name="DIR")], /, *, int8: bool = False
) -> None:
    """Write a model in full precision, in the layout that transformers and PEFT read.

    polyvec export mini exported/

    polyvec export jinaai/jina-embeddings-v3 smaller/ --int8

    Parameters
    ----------
    model
        A model folder or a name on the Hugging Face hub; "mini" is the bundled model.
    folder
        The folder to write; an older export there is replaced, anything else is refused.
    int8
        In half of bf16's space, which polyvec alone reads: 8 bits a number. Many processors also
        encode large models faster with it.

    """
    from polyvec.checkpoint import load_checkpoint, save_checkpoint, save_compact
    from polyvec.encoder import find_model
    from polyvec.tokenizer import Tokenizer

    source = find_model(None if model == "mini" else model)
    config, weights = load_checkpoint(source)
    files = Tokenizer.load(source, config.max_tokens).files()
    (save_compact if int8 else save_checkpoint)(folder, config, weights, files=files)
    note(f"wrote {folder}")


def main() -> None:
    """Run the command line and end the process: 0, or 2 after one sentence on standard error."""
    # LanceDB reports every table it creates as a warning, unless told before it is imported.
    os.environ.setdefault("LANCEDB_LOG", "error")
    sys.exit(_run(lambda: app(sys.argv[1:], print_error=False, exit_on_error=False)))


def _run(command: Callable[[], object]) -> int:
    """The exit status of a command."""
    try:
        command()
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain again when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except ImportError as error:
        # Cyclopts tells of a room that it cannot import; the reason is the cause.
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = (missing.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        note(f"this needs {package}: pip install 'polyvec[{EXTRAS[package]}]'")
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        note(f"{name}{error.strerror or error}")
    except (ValueError, CycloptsError) as error:
        note(" ".join(str(error).split()))
    return 2


def _feed(records: Iterable[dict[str, Any]], fed: deque[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        fed.append(record)
        yield record["text"]


def _version() -> str:
    from importlib.metadata import version

    return version("polyvec")
