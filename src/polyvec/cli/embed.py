"""`polyvec embed`: texts in, vectors out."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter


def embed(
    *texts: str,
    input: Annotated[
        list[Path] | None, Parameter(name=["--input", "-i"], allow_leading_hyphen=True)
    ] = None,
    output: Annotated[Path | None, Parameter(name=["--out", "--output", "-o"])] = None,
    format: Literal["jsonl", "npy", "parquet"] | None = None,
    task: str | None = None,
    dim: int | None = None,
    truncate: Literal["end", "start", "error"] = "end",
    model: str | None = None,
) -> None:
    """Embed texts: write one vector per text.

    The texts are arguments, the rows of files, or the lines of standard input. They are read and
    written in windows, so memory does not grow with the number of texts.

    polyvec embed "Hello" "Grüß Gott" --task text-matching

    polyvec embed --input notes.txt --out vectors.npy --dim 128

    cat texts.txt | polyvec embed -i - -o vectors.parquet --task retrieval.passage

    Parameters
    ----------
    texts
        The texts. If there are no texts and no --input, each line of standard input is a text.
    input
        A file with one text per line, or a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file
        whose rows have a column "text". "-" is standard input with one text per line. Repeat the
        option to read several files.
    output
        The file to write. It appears only when it is complete. The default is JSON lines on
        standard output, which keep the other fields of the input.
    format
        The format of the output. The default is the extension of the output file, or jsonl.
    task
        What the vectors are for, for example retrieval.query. `polyvec info` lists the tasks of a
        model. By default, no adapter and no instruction is used.
    dim
        How many numbers a vector has: one of the model's Matryoshka sizes. The default is the
        largest.
    truncate
        What a text loses that has more tokens than the model reads: its end or its start, with a
        note of how much was cut. With error, such a text is refused.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.

    """
    if texts and input:
        raise ValueError("give texts as arguments or with --input, not both")
    if not texts and not input and sys.stdin.isatty():
        raise ValueError('give texts, as in: polyvec embed "some text"; or --input FILE')
    kind = format or ("jsonl" if output is None else output.suffix[1:])
    if kind not in ("jsonl", "npy", "parquet"):
        raise ValueError(f"cannot tell the format from {output}; name it with --format")
    if output is None and kind != "jsonl":
        raise ValueError(f"{kind} cannot go to standard output; name a file with --out")
    from polyvec.encoder import Encoder
    from polyvec.records import read_records
    from polyvec.vector_files import write_vectors

    records = ({"text": text} for text in texts) if texts else read_records(input or [Path("-")])
    # Arguments are few, so start-up takes most of the time.
    encoder = Encoder.load(model, prepack=False if texts else None)
    sizes = encoder.config.dims
    if dim is not None and dim not in sizes:
        raise ValueError(f"--dim is {dim}, must be one of {', '.join(map(str, sizes))}")
    dim = dim or encoder.config.width
    waiting: deque[dict[str, Any]] = deque()
    vectors = encoder.encode_stream(_feed(records, waiting), task=task, dim=dim, truncate=truncate)
    # The encoder reads a window ahead, so the records of its vectors wait in `waiting`.
    rows = (([waiting.popleft() for _ in part], part) for part in vectors)
    write_vectors(rows, output, kind, dim)


def _feed(records: Iterable[dict[str, Any]], waiting: deque[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        waiting.append(record)
        yield record["text"]
