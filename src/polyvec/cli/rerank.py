"""`polyvec rerank`: texts in the order of how well they answer a query."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from polyvec.terminal import ExitStatus, json_line, plain


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
) -> ExitStatus:
    """Sort texts by how well they answer a query.

    The model is a bi-encoder: it encodes the query and each text separately and compares the
    results. The exit status is 1 if the file has no texts.

    polyvec rerank "how do I stop a nosebleed?" candidates.txt --top 3

    cat candidates.txt | polyvec rerank "pain au levain" - --by hybrid --json

    Parameters
    ----------
    query
        The question or text that the candidates are compared with.
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
        How many results to show. The default is all.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    json
        Print one JSON object per result. It has the fields of the input, the text's position in
        the file (from 0) and the parts of the score.

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
            result = record | {"index": one.index, "score": one.score, "parts": one.parts}
            sys.stdout.write(json_line(result))
        else:
            text = " ".join(record["text"].split())
            sys.stdout.write(plain(f"{one.score:.3f}  {text}\n"))
    return ExitStatus.DONE if ranked else ExitStatus.INCOMPLETE
