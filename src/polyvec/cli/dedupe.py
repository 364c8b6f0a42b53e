"""`polyvec dedupe`: files with the same content."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from polyvec.terminal import ExitStatus, file_progress, json_line, note, plain_line


def dedupe(
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    threshold: float = 0.95,
    model: str | None = None,
    json: bool = False,
) -> ExitStatus:
    """Find files with the same content, in other words or in another language.

    Groups of similar files are listed, and no file is deleted. Each copy has its similarity to the
    first file of its group. A folder without copies is a normal result with exit status 0. The exit
    status is 1 if files were skipped because they cannot be read.

    polyvec dedupe notes/

    polyvec dedupe notes/ --threshold 0.9 --json

    Parameters
    ----------
    folder
        The folder to search. Text, Markdown, source code, HTML, PDF, CSV and JSON lines are read.
    threshold
        The cosine from which two files count as copies, above 0 and at most 1.
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.
    json
        Print one JSON object per group.

    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    from dataclasses import asdict

    from polyvec.encoder import Encoder
    from polyvec.search import find_duplicates
    from polyvec.search.files import list_files

    skipped: list[str] = []
    with file_progress(sum(1 for _ in list_files(folder))) as bar:
        groups = find_duplicates(
            folder,
            Encoder.load(model),
            threshold=threshold,
            on_skipped=skipped.append,
            progress=lambda path: bar.update(),
        )
    for sentence in skipped:
        note(f"skipped {sentence}")
    for group in groups:
        if json:
            sys.stdout.write(json_line(asdict(group)))
        else:
            lines = [f"      {folder / group.path}"]
            lines += [f"{score:.2f}  {folder / path}" for path, score in group.copies]
            sys.stdout.write("".join(plain_line(line) + "\n" for line in lines) + "\n")
    num_copies = sum(len(group.copies) for group in groups)
    note(f"{num_copies} copies of {len(groups)} files")
    return ExitStatus.INCOMPLETE if skipped else ExitStatus.DONE
