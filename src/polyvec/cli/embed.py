"""`polyvec embed`: texts in, vectors out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from polyvec.terminal import ExitStatus, note

if TYPE_CHECKING:
    from polyvec.encoder import Encoder
    from polyvec.records import Row


def embed(
    *texts: str,
    input: Annotated[
        list[Path] | None, Parameter(name=["--input", "-i"], allow_leading_hyphen=True)
    ] = None,
    output: Annotated[Path | None, Parameter(name=["--out", "--output", "-o"])] = None,
    format: Literal["jsonl", "npy", "parquet"] | None = None,
    each: Literal["row", "passage"] = "row",
    text_column: str = "text",
    id_column: str | None = None,
    rejected: Path | None = None,
    task: str | None = None,
    dim: int | None = None,
    model: str | None = None,
) -> ExitStatus:
    """Embed texts: write one vector per text.

    The texts are arguments, the rows of files, or the lines of standard input. They are read and
    written in windows, so memory does not grow with the number of texts. All columns of a row are
    carried to the output. A row that cannot be used is set aside, and the exit status is 1.

    polyvec embed "Hello" "Grüß Gott" --task text-matching

    polyvec embed --input notes.txt --out vectors.npy --dim 128

    cat texts.txt | polyvec embed -i - -o vectors.parquet --task retrieval.passage

    polyvec embed --each passage -i notes/ -o notes.parquet

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
        standard output. Beside an npy file, the columns of the input are written to a file with
        the same name and the ending .rows.jsonl.
    format
        The format of the output. The default is the extension of the output file, or jsonl.
    each
        What becomes a vector: each row, or each passage of the files and folders of --input. A
        passage has its path, its line or page, its start and end in the characters of the file's
        text, and the headings above it.
    text_column
        The column that has the texts.
    id_column
        A column that identifies a row. A row without a value there is set aside.
    rejected
        The file for rows that are set aside, in JSON lines. The default is the name of the output
        file with the ending .rejected.jsonl; the terminal names the first rows in any case.
    task
        What the vectors are for, for example retrieval.query. `polyvec info` lists the tasks of a
        model. By default, passages are embedded for retrieval.passage, and no adapter and no
        instruction is used for rows.
    dim
        How many numbers a vector has: one of the model's Matryoshka sizes. The default is the
        largest.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.

    """
    from polyvec.cli.inputs import check_inputs, read_texts
    from polyvec.rejected_rows import SUFFIX, set_aside
    from polyvec.vector_files import FORMATS, WRITERS, write_vectors

    check_inputs("embed", texts, input)
    kind = format or ("jsonl" if output is None else FORMATS.get(output.suffix.lower(), ""))
    if kind not in WRITERS:
        raise ValueError(f"cannot tell the format from {output}; name it with --format")
    if output is None and kind != "jsonl":
        raise ValueError(f"{kind} cannot go to standard output; name a file with --out")
    if each == "passage" and not input:
        raise ValueError("--each passage needs files or folders: --input PATH")
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} for {output.name}")
    if rejected is None and output is not None:
        rejected = output.with_name(output.name + SUFFIX)
    from polyvec.encoder import Encoder
    from polyvec.records import is_table, text_columns
    from polyvec.row_encoding import encode_rows
    from polyvec.tasks import PASSAGE

    skipped = list[str]()
    with set_aside(rejected) as report:
        columns = text_columns(text_column, id_column)
        given = read_texts(texts, input, columns, text_column, report) if each == "row" else None
        # Arguments are few, so start-up takes most of the time.
        encoder = Encoder.load(model, prepack=False if texts else None)
        if given is not None:
            rows = ((row, row.record[text_column]) for row in given)
        else:
            rows = _read_passages(input or [], encoder, skipped.append)
            has_task = PASSAGE in [known.name for known in encoder.config.tasks]
            task = PASSAGE if task is None and has_task else task
        windows = encode_rows(encoder, rows, task=task, dim=dim, report=report)
        has_columns = each == "passage" or any(is_table(path) for path in input or [])
        size = dim or encoder.config.width
        count = write_vectors(windows, output, kind, size, keep_rows=has_columns)
    for sentence in skipped:
        note(f"skipped {sentence}")
    if not count:
        source = ", ".join(map(str, input or ["standard input"]))
        unwritten = "" if output is None else f"; {output} is not written"
        note(f"there is no text that can be embedded in {source}{unwritten}")
    return ExitStatus.DONE if count and not report.count + len(skipped) else ExitStatus.INCOMPLETE


def _read_passages(
    paths: Sequence[Path], encoder: "Encoder", skip: Callable[[str], object]
) -> Iterator[tuple["Row", str]]:
    """Yield the passages of files and folders, each with the text to embed.

    `skip` is called with a sentence for each file that cannot be read as a whole.
    """
    from polyvec.records import Row
    from polyvec.search.files import list_files, read_file
    from polyvec.search.passages import split_file, texts_with_headings

    for path in paths:
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}")
    for path in paths:
        folder = path if path.is_dir() else path.parent
        for name in list_files(path) if path.is_dir() else [path.name]:
            try:
                split = split_file(folder, read_file(folder, name), encoder.tokenizer)
            except ValueError as error:
                skip(str(error))
                continue
            document = split.document
            if document.cut:
                skip(f"{folder / name}: {document.cut}")
            texts = texts_with_headings(split)
            for passage, (text, _) in zip(split.passages, texts, strict=True):
                number = document.locate(passage.start)
                record = {
                    "path": str(folder / name),
                    "line": number if document.unit == "line" else None,
                    "page": number if document.unit == "page" else None,
                    "start": passage.start,
                    "end": passage.end,
                    "heading": " > ".join(passage.headings),
                    "text": document.text[passage.start : passage.end],
                }
                yield Row(record, str(folder / name), number, document.unit), text
