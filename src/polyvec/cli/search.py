"""`polyvec search`: passages of a folder's files that answer a question."""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from polyvec.terminal import (
    ExitStatus,
    ask,
    byte_progress,
    is_coloured,
    json_line,
    note,
    plain,
    plain_line,
)

if TYPE_CHECKING:
    from polyvec.search import Answer, Hit, Index, NotUpdatedError, Update


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
    per_file: int = 1,
    min_score: float = 0.0,
    explain: bool = False,
    watch: bool = False,
    forget: bool = False,
    follow_links: bool = False,
    index: Path | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    all_files: bool = False,
    max_rows: int = 10_000,
    dim: int | None = None,
    quantise: Literal["float", "int8", "binary"] | None = None,
    model: str | None = None,
    json: bool = False,
) -> ExitStatus:
    """Find the passages of a folder's files that answer a question, by meaning and by words.

    The first search indexes the folder. Later searches index only what changed. The exit status is
    1 if no passage was found, or if most files of the index seem to be gone. Files that cannot be
    read are named, and do not change it. DIR may also be a single file.

    polyvec search notes/ "how do I stop a nosebleed?"

    polyvec search notes/ "pain au levain" --top 3 --path "*.md" --since 2026-01-31 --json

    polyvec search notes/ --near notes/bread.txt

    polyvec search notes/ --watch

    Parameters
    ----------
    folder
        The folder to search. Text, Markdown, source code, HTML, PDF, office documents, e-mail,
        tables and many other kinds of files are read.
    question
        The question, in any of the model's languages.
    top
        How many results to show.
    near
        A file to use in place of a question: the other files that are most similar to it are
        shown.
    path
        Search only files whose path below DIR matches this pattern, for example "*.md" or
        "letters/*".
    since
        Search only files that were modified on or after this date.
    by
        How the components are combined: by their scores or by their ranks.
    weight
        How much a component counts; 0 switches it off. Example: --weight.bm25 0.5. The components
        are dense (meaning, default 1), bm25 (words, default 0.25) and, if the model has the head,
        sparse (learned token weights, default 0).
    rerank
        How many of the first passages to reorder by MaxSim, which compares one embedding per
        token. At least the passages that are shown are reordered. 0 switches it off.
    per_file
        How many passages of one file to show at most. 0 shows all.
    min_score
        Show only passages whose score is at least this.
    explain
        Show the rank, the score and the contribution of each component.
    watch
        Keep the index up to date as files change, and report the changes, until Ctrl-C. The
        question is answered again after every change. Further questions are read from standard
        input, one per line.
    forget
        Remove the passages of files that are gone from the index, even if they are most of it or
        their disk may not be mounted. Without this option, you are asked on a terminal, and they
        are kept elsewhere.
    follow_links
        Follow symbolic links that lead out of the folder.
    index
        The folder for the index. The default is DIR/.polyvec, which may be deleted at any time.
    include
        Read only files that match one of these patterns, which are those of .gitignore: "*.md", or
        "letters/".
    exclude
        Leave out the files and folders that match one of these patterns.
    all_files
        Read also files that .gitignore names, and folders of generated files such as build and
        node_modules.
    max_rows
        How many rows of a table are read.
    dim
        How many numbers a vector has: one of the model's Matryoshka sizes. The default is that of
        the existing index, or the largest for a new index.
    quantise
        How vectors are stored: as float, as int8 (a quarter of the size), or as binary (int8, plus
        one bit per number for a faster first search). The default is that of the existing index,
        or float for a new index.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    json
        Print one JSON object per result.

    """
    if top < 1:
        raise ValueError(f"--top is {top}, must be at least 1")
    if max_rows < 1:
        raise ValueError(f"--max-rows is {max_rows}, must be at least 1")
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    if per_file < 0:
        raise ValueError(f"--per-file is {per_file}, must be at least 0")
    if question is not None and near is not None:
        raise ValueError("give a QUESTION or --near FILE, not both")
    if question is None and near is None and not watch:
        raise ValueError("give a QUESTION, or --near FILE")
    if question is not None and not question.strip():
        raise ValueError("the question is empty")
    from polyvec.encoder import Encoder
    from polyvec.search import Index
    from polyvec.search.files import Selection
    from polyvec.search.fusion import choose_weights
    from polyvec.search.lexical import telling_words
    from polyvec.search.retrieval import list_heads

    encoder = Encoder.load(model)
    # Before the folder is indexed, which may take long.
    choose_weights(weight or {}, list_heads(encoder.config))
    selection = Selection(include or (), exclude or (), all_files, max_rows)
    target = Index(
        folder, encoder, directory=index, dim=dim, quantise=quantise, selection=selection
    )
    colour = is_coloured()
    on_terminal = not json and sys.stdout.isatty()

    def reply(asked: str | None) -> bool:
        """Write the answer. Return whether there is one."""
        started = time.perf_counter()
        words = set[str]()
        if asked is not None:
            answer = target.search(
                asked,
                top=top,
                by=by,
                weights=weight,
                rerank=rerank,
                path=path,
                since=since,
                per_file=per_file or None,
                min_score=min_score,
                mark=on_terminal,
            )
            if on_terminal:
                words = telling_words(asked, target.encoder.tokenizer)
        elif near is not None:
            answer = target.find_similar(near, top=top, path=path, since=since)
        else:
            return False
        note(f"answered in {time.perf_counter() - started:.3f} s")
        if not answer:
            note(_explain_nothing(target, answer, asked or "", path, since))
        elif not answer.is_likely:
            note(_doubt(target, answer))
        for hit in answer:
            if json:
                sys.stdout.write(_as_json(hit, explain))
            else:
                shown = _as_text(
                    hit, target.folder, explain, words, on_terminal=on_terminal, colour=colour
                )
                sys.stdout.write(shown)
        # A program that reads a watcher's output waits for each answer.
        sys.stdout.flush()
        return bool(answer)

    if watch:
        _watch(target, question, reply, forget=forget, follow_links=follow_links)
        return ExitStatus.DONE
    is_complete = _update(target, forget=forget, follow_links=follow_links)
    return ExitStatus.DONE if reply(question) and is_complete else ExitStatus.INCOMPLETE


def _update(target: "Index", *, forget: bool, follow_links: bool) -> bool:
    """Bring the index up to date and report what changed, or why that is not possible.

    Return False if the passages of files that seem to be gone were kept without asking.
    """
    from polyvec.search import NotUpdatedError

    asked = False

    def may_forget(doubt: str) -> bool:
        nonlocal asked
        answer = None if forget else ask(f"{doubt} Remove their passages from the index?")
        asked = answer is not None
        return forget or bool(answer)

    started = time.perf_counter()
    try:
        with byte_progress() as show:
            update = target.update(show, forget=may_forget, follow_links=follow_links)
    except NotUpdatedError as error:
        note(_describe_stale(target, error))
        return True
    except KeyboardInterrupt:
        # An index that was not complete enough to be opened has nothing to keep.
        with suppress(ValueError):
            files, passages = target.count()
            kept = f"{passages} passages of {files} files are kept"
            note(f"stopped; {kept}, and the next search goes on from there")
        raise
    _report_update(update, time.perf_counter() - started)
    return asked or not update.doubt


def _describe_stale(target: "Index", error: "NotUpdatedError") -> str:
    """The sentence about an index that is searched as it is. Raises ValueError if it is empty."""
    from polyvec.search import BusyError
    from polyvec.search.files import list_files
    from polyvec.search.table_files import DamagedError

    is_busy, files, passages = isinstance(error, BusyError), 0, 0
    try:
        files, passages = target.count()
    except DamagedError:
        # While a table is created, it cannot be opened.
        if not is_busy:
            raise
    if is_busy:
        if not passages:
            raise ValueError(f"{error}, and it has no passages yet; try again in a moment")
        total = sum(1 for _ in list_files(target.place))
        return f"{error}; searching {passages} passages of {files} files (the folder has {total})"
    if not passages:
        raise ValueError(f"{error}; choose another directory with --index")
    return (
        f"{error}, so what changed since its last update is not found; searching {passages} "
        f"passages of {files} files"
    )


def _watch(
    target: "Index",
    question: str | None,
    answer: Callable[[str | None], bool],
    *,
    forget: bool,
    follow_links: bool,
) -> None:
    """Keep the index up to date and answer questions, until interrupted."""
    from polyvec.search import NotUpdatedError, Update
    from polyvec.search.watch import read_questions, watch_index

    started = time.perf_counter()
    reported = set[str]()
    try:
        with byte_progress() as show:
            events = watch_index(
                target,
                read_questions(),
                show,
                # Standard input is for questions, so nothing is asked here.
                forget=lambda doubt: forget,
                follow_links=follow_links,
            )
            first = next(events)
        if isinstance(first, Update):
            _report_update(first, time.perf_counter() - started)
            reported.update(first.skipped, [first.doubt])
        else:
            note(f"{first}; searching the index as it is")
        note(f"watching {target.folder}; Ctrl-C ends it")
        answer(question)
        for event in events:
            if isinstance(event, NotUpdatedError):
                note(str(event))
                continue
            if not isinstance(event, Update):
                answer(event)
                continue
            for path in event.changed:
                note(f"changed {target.folder / path}")
            for path in event.removed:
                note(f"removed {target.folder / path}")
            for sentence in event.skipped:
                if sentence not in reported:
                    note(f"skipped {sentence}")
            if event.doubt and event.doubt not in reported:
                note(_keep(event.doubt))
            reported = {*event.skipped, event.doubt}
            answer(question)
    except KeyboardInterrupt:
        note("stopped watching")


def _report_update(update: "Update", seconds: float) -> None:
    for sentence in update.skipped:
        note(f"skipped {sentence}")
    if update.doubt:
        note(_keep(update.doubt))
    for sentence in update.notes:
        note(sentence)
    if update.rebuilt:
        note(f"rebuilt the index, since {update.rebuilt}")
    if update.resumed:
        note(f"an earlier update was interrupted; the {update.resumed} passages it left were kept")
    news = f"{len(update.changed)} new or changed, {len(update.removed)} removed"
    size = f"{update.files} files, {update.passages} passages ({news})"
    note(f"indexed {size} in {seconds:.2f} s")


def _keep(doubt: str) -> str:
    return f"{doubt} Their passages are kept; --forget removes them"


def _explain_nothing(
    target: "Index", answer: "Answer", question: str, path: str | None, since: datetime | None
) -> str:
    """The sentence for a question without results."""
    from polyvec.search.lexical import split_question

    if not question:
        return f"there is no other file to compare in {target.folder}"
    if answer.best_score is not None:
        return f"no passage scores as high as --min-score; the best has {answer.best_score:.2f}"
    if not target.count()[1]:
        return f"{target.folder} has no passages that could be searched"
    if not target.count_passages(path=path, since=since):
        conditions = [f"matches --path {path}"] * (path is not None)
        conditions += [f"was modified since {since:%Y-%m-%d}"] if since is not None else []
        return f"no file in {target.folder} {' and '.join(conditions)}"
    phrases = split_question(question)[1]
    if phrases:
        quoted = " and ".join(f'"{phrase}"' for phrase in phrases)
        return f"no passage contains the phrase {quoted}; without quotation marks, words may differ"
    return "no passage contains a word of the question"


def _doubt(target: "Index", answer: "Answer") -> str:
    """The sentence for results that are not likely to answer the question."""
    if answer.missing:
        words = ", ".join(answer.missing)
        return f"no passage contains {words}; nothing here is likely to answer the question"
    return f"nothing in {target.folder} is likely to answer the question; the nearest passages are:"


def _as_json(hit: "Hit", explain: bool) -> str:
    from dataclasses import asdict

    fields = asdict(hit)
    del fields["sentence"]
    if not explain:
        del fields["parts"]
    return json_line(fields | {"score": round(hit.score, 6)})


def _as_text(
    hit: "Hit", folder: Path, explain: bool, words: set[str], *, on_terminal: bool, colour: bool
) -> str:
    """The result for a person: a few marked lines on a terminal, the whole passage elsewhere."""
    from polyvec.search.snippets import show_head, show_snippet

    place = f"{folder / hit.path}" + (f":{hit.line}" if hit.page is None else f", page {hit.page}")
    lines = [show_head(f"{hit.score:.2f}", place, is_coloured=colour)]
    if explain:
        lines += [
            f"    {name:6} no. {part.rank:<3} {part.score:8.3f}  adds {part.share:.3f}"
            for name, part in hit.parts.items()
        ]
    if on_terminal:
        width = max(20, shutil.get_terminal_size().columns - 5)
        shown = show_snippet(hit.text, hit.sentence, words, width=width, is_coloured=colour)
    else:
        shown = [plain(line.strip()) for line in hit.text.splitlines() if line.strip()]
    lines += [f"    {line}" for line in shown]
    if hit.copies:
        lines.append(plain_line(f"    also in {', '.join(hit.copies)}"))
    return "\n".join([*lines, "", ""])
