"""The verbs `polyvec search` and `polyvec dedupe`, as functions that a command line calls.

Their descriptions and examples are in `cli.py`, so that `polyvec --help` need not come here.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from tqdm import tqdm

from polyvec.encoder import Encoder
from polyvec.search import BusyError, Hit, Index, Update, find_duplicates
from polyvec.search.vectors import Quantise
from polyvec.terminal import json_line, note, plain


def search(
    folder: Annotated[Path, Parameter(name="DIR")],
    question: str | None = None,
    /,
    *,
    top: int = 5,
    near: Path | None = None,
    path: str | None = None,
    since: datetime | None = None,
    by: Literal["ranks", "scores"] = "scores",
    weight: dict[str, float] | None = None,
    rerank: int = 0,
    explain: Annotated[bool, Parameter(negative=())] = False,
    watch: Annotated[bool, Parameter(negative=())] = False,
    index: Path | None = None,
    dim: int | None = None,
    quantise: Quantise | None = None,
    model: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Find the passages of a folder's files that answer a question, by meaning and by words.

    Parameters
    ----------
    folder
        The folder; text, Markdown, source code, HTML, PDF, CSV and JSON lines are searched.
    question
        What to look for, in any of the model's languages.
    top
        Passages to show.
    near
        Instead of a question, a file: the other files most like it are shown.
    path
        Only files whose path below DIR fits this, as in "*.md" or "letters/*".
    since
        Only files written since this date.
    by
        How components are put together: by their scores, or by their rankings.
    weight
        How much a component counts, 0 for not at all: --weight.bm25 0.5. They are dense (meaning,
        1), bm25 (words, 0.1) and, where the model has it, sparse (learned words, 0).
    rerank
        Put so many first passages, and at least those shown, in order by their tokens' vectors
        (MaxSim).
    explain
        Show what each component said of a passage: its rank, its score, its share of the whole.
    watch
        Keep the index up to date as files change and tell what changed, until Ctrl-C. The question
        is answered again after every change; more of them are read from standard input, one a line.
    index
        Where to keep the index; by default in DIR/.polyvec.
    dim
        Numbers in each vector, one of the model's Matryoshka sizes; by default as the index is,
        and all in a new one.
    quantise
        How vectors are kept: float, int8 (a quarter of the size), or binary (int8, and found by a
        bit a number). By default as the index is, and float in a new one.
    model
        A model folder or a name on the Hugging Face hub; by default the bundled model.
    json
        Print one JSON object a passage.

    """
    if top < 1:
        raise ValueError(f"--top is {top}, must be at least 1")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if question is not None and near is not None:
        raise ValueError("give a QUESTION or --near FILE, not both")
    if question is None and near is None and not watch:
        raise ValueError("give a QUESTION, or --near FILE")
    if question is not None and not question.strip():
        raise ValueError("the question is empty")
    target = Index(folder, Encoder.load(model), place=index, dim=dim, quantise=quantise)

    def answer(asked: str | None) -> None:
        started = time.perf_counter()
        if asked is not None:
            hits = target.search(
                asked, top=top, by=by, weights=weight, rerank=rerank, path=path, since=since
            )
        elif near is not None:
            hits = target.near(near, top=top, path=path, since=since)
        else:
            return
        note(f"answered in {time.perf_counter() - started:.3f} s")
        for hit in hits:
            sys.stdout.write(_as_json(hit, explain) if json else _as_text(hit, folder, explain))
        # A watcher's reader waits for each answer.
        sys.stdout.flush()

    if watch:
        _watch(target, question, answer)
    else:
        _update(target)
        answer(question)


def dedupe(
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    threshold: float = 0.95,
    model: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Find files of a folder that say the same, in other words or another language too.

    Parameters
    ----------
    folder
        The folder; the kinds of files that `polyvec search` reads.
    threshold
        From which cosine on two files are taken to say the same.
    model
        A model folder or a name on the Hugging Face hub; by default the bundled model.
    json
        Print one JSON object a group.

    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    with _progress() as bar:
        groups = find_duplicates(
            folder,
            Encoder.load(model),
            threshold=threshold,
            skipped=lambda sentence: note(f"skipped {sentence}"),
            progress=lambda path: bar.update(),
        )
    for group in groups:
        if json:
            sys.stdout.write(json_line(asdict(group)))
        else:
            copies = [f"{score:.2f}  {folder / path}\n" for path, score in group.copies]
            sys.stdout.write("".join([f"      {folder / group.path}\n", *copies]) + "\n")
    copies = sum(len(group.copies) for group in groups)
    note(f"{copies} copies of {len(groups)} files")


def _update(target: Index) -> None:
    """Bring the index up to date, unless another process is at it, and tell what that did."""
    started = time.perf_counter()
    try:
        with _progress() as bar:
            update = target.update(lambda path: bar.update())
    except BusyError as busy:
        note(f"{busy}; searching it as it is")
    else:
        _tell_update(update, time.perf_counter() - started)


def _watch(target: Index, question: str | None, answer: Callable[[str | None], None]) -> None:
    """Keep the index up to date and answer questions, until interrupted."""
    from polyvec.search.watching import follow, read_questions

    started = time.perf_counter()
    told = set[str]()
    try:
        with _progress() as bar:
            events = follow(target, read_questions(), lambda path: bar.update())
            first = next(events)
        if isinstance(first, Update):
            _tell_update(first, time.perf_counter() - started)
            told.update(first.skipped)
        else:
            note(f"{first}; searching it as it is")
        note(f"watching {target.folder}; Ctrl-C ends it")
        answer(question)
        for event in events:
            if not isinstance(event, Update):
                answer(str(event))
                continue
            for path in event.changed:
                note(f"changed {target.folder / path}")
            for path in event.removed:
                note(f"removed {target.folder / path}")
            for sentence in event.skipped:
                if sentence not in told:
                    note(f"skipped {sentence}")
            told = set(event.skipped)
            answer(question)
    except KeyboardInterrupt:
        note("stopped watching")


def _progress() -> tqdm:
    return tqdm(unit="file", delay=0.5, leave=False, disable=None)


def _tell_update(update: Update, seconds: float) -> None:
    for sentence in update.skipped:
        note(f"skipped {sentence}")
    if update.rebuilt:
        note(f"rebuilt the index, since {update.rebuilt}")
    news = f"{len(update.changed)} new or changed, {len(update.removed)} removed"
    size = f"{update.files} files, {update.chunks} passages ({news})"
    note(f"indexed {size} in {seconds:.2f} s")


def _as_json(hit: Hit, explain: bool) -> str:
    fields = asdict(hit)
    if not explain:
        del fields["parts"]
    return json_line(fields | {"score": round(hit.score, 6)})


def _as_text(hit: Hit, folder: Path, explain: bool) -> str:
    lines = [line.strip() for line in hit.text.strip().splitlines() if line.strip()]
    place = f":{hit.line}" if hit.page is None else f", page {hit.page}"
    head = f"{hit.score:.2f}  {folder / hit.path}{place}"
    if explain:
        lines = [
            *(
                f"{name:6} no. {part.rank:<3} {part.score:8.3f}  adds {part.share:.3f}"
                for name, part in hit.parts.items()
            ),
            *lines,
        ]
    return plain("\n".join([head, *(f"    {line}" for line in lines), "", ""]))
