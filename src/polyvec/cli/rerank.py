"""`polyvec rerank`: texts in the order of how well they answer a query."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from polyvec.terminal import ExitStatus, json_line, note, plain

if TYPE_CHECKING:
    from polyvec.encoder import Encoder
    from polyvec.records import Report, Row
    from polyvec.reranking import Kind, Ranked


def rerank(
    query: str,
    file: Annotated[Path | None, Parameter(name="FILE", allow_leading_hyphen=True)] = None,
    /,
    *,
    by: Literal["dense", "sparse", "multi_vector", "hybrid"] = "dense",
    task: str = "retrieval",
    top: int | None = None,
    text_column: str = "text",
    id_column: str | None = None,
    query_column: str | None = None,
    rejected: Path | None = None,
    model: str | None = None,
    json: bool = False,
) -> ExitStatus:
    """Sort texts by how well they answer a query.

    The model is a bi-encoder: it encodes the query and each text separately and compares the
    results. A row that cannot be used costs no other row. The exit status is 1 if there are such
    rows, or if the file has no texts.

    polyvec rerank "how do I stop a nosebleed?" candidates.txt --top 3

    cat candidates.txt | polyvec rerank "pain au levain" - --by hybrid --json

    polyvec rerank questions.csv --query-column question --text-column answer --top 1

    Parameters
    ----------
    query
        The question or text that the candidates are compared with. With --query-column, it is
        omitted, and FILE is the only argument.
    file
        A file with one candidate per line, or a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file
        whose rows have a column "text". "-" is standard input with one candidate per line.
    by
        The score: the cosine of the embeddings (dense), the weights of shared tokens (sparse),
        MaxSim of one embedding per token (multi_vector), or a combination of the three (hybrid).
        All but dense need a model that has the heads for them; `polyvec info` tells.
    task
        What the vectors are for. "retrieval" uses one adapter for the query and another for the
        texts.
    top
        How many results to show for a query. The default is all.
    text_column
        The column that has the candidates.
    id_column
        A column that identifies a row, which is shown before the text.
    query_column
        The column that has the query of each row. The rows of each query are sorted by themselves.
    rejected
        The file for rows that are set aside, in JSON lines. By default, they are only named.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    json
        Print one JSON object per result. It has the fields of the input, the text's position in
        the file (from 0) and the parts of the score.

    """
    if top is not None and top < 1:
        raise ValueError(f"--top is {top}, must be at least 1")
    if query_column is not None:
        if file is not None:
            raise ValueError("give a QUERY or --query-column, not both")
        file = Path(query)
    if file is None:
        raise ValueError("give a QUERY and a FILE, or a FILE and --query-column")
    from polyvec import reranking
    from polyvec.encoder import Encoder
    from polyvec.records import join_result, read_files, text_columns
    from polyvec.rejected_rows import set_aside

    with set_aside(rejected) as report:
        columns = text_columns(text_column, id_column, query_column)
        rows = list(read_files([file], columns, report=report))
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            asked = query if query_column is None else str(row.record[query_column])
            groups.setdefault(asked, []).append(index)
        encoder = Encoder.load(model)
        for asked, members in groups.items():
            if query_column is not None and not json:
                sys.stdout.write(plain(f"{asked}\n"))
            ranked = _rank(
                encoder,
                asked,
                [rows[i] for i in members],
                text_column,
                by=reranking.HYBRID if by == "hybrid" else {by: 1.0},
                task=reranking.RETRIEVAL if task == "retrieval" else (task, task),
                report=report,
            )
            for one in ranked[:top]:
                index = members[one.index]
                record = rows[index].record
                if json:
                    result = {"index": index, "score": one.score, "parts": one.parts}
                    sys.stdout.write(json_line(join_result(record, result)))
                else:
                    shown = "" if id_column is None else f"{record[id_column]}  "
                    text = " ".join(record[text_column].split())
                    sys.stdout.write(plain(f"{one.score:.3f}  {shown}{text}\n"))
    if not rows and not report.count:
        note(f"there is no text to rank in {file}")
    return ExitStatus.DONE if rows and not report.count else ExitStatus.INCOMPLETE


def _rank(
    encoder: "Encoder",
    query: str,
    rows: "Sequence[Row]",
    text_column: str,
    *,
    by: "Mapping[Kind, float]",
    task: tuple[str | None, str | None],
    report: "Report",
) -> "list[Ranked]":
    """Rank the texts of rows, without those that have no finite embedding."""
    import numpy as np

    from polyvec import reranking
    from polyvec.outputs import NotFiniteError
    from polyvec.row_encoding import NO_EMBEDDING, encode_finite

    texts = [row.record[text_column] for row in rows]
    try:
        return reranking.rerank(encoder, query, texts, by=by, task=task)
    except NotFiniteError:
        vectors = encode_finite(encoder, texts, task=task[1])
    usable = np.flatnonzero(np.isfinite(vectors).all(1)).tolist()
    for i in {*range(len(rows))} - {*usable}:
        report(rows[i].reject(NO_EMBEDDING))
    ranked = reranking.rerank(encoder, query, [texts[i] for i in usable], by=by, task=task)
    return [reranking.Ranked(usable[one.index], one.score, one.parts) for one in ranked]
