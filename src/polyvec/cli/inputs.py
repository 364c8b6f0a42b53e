"""The texts of a verb: its arguments, the rows of files, or the lines of standard input."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from polyvec.records import Columns, Report, Row, read_files


def check_inputs(verb: str, texts: Sequence[str], paths: Sequence[Path] | None) -> None:
    """Raise ValueError unless the texts of a verb come from one place, which is the intended one.

    An argument that names an existing file or folder is most likely meant as an input.
    """
    if texts and paths:
        raise ValueError("give texts as arguments or with --input, not both")
    if not texts and not paths and sys.stdin.isatty():
        raise ValueError(f'give texts, as in: polyvec {verb} "some text"; or --input FILE')
    for text in texts:
        if _is_path(text):
            raise ValueError(
                f"{text} is a file or a folder; to read it, use -i {text}. To use the words "
                f"themselves, send them to standard input: echo {text} | polyvec {verb}"
            )


def read_texts(
    texts: Sequence[str],
    paths: Sequence[Path] | None,
    columns: Columns,
    text_column: str,
    report: Report,
) -> Iterator[Row]:
    """The rows that hold the texts of a verb. Raises ValueError for a file that is missing."""
    if texts:
        numbered = enumerate(texts, 1)
        return (Row({text_column: text}, "the arguments", i, "text") for i, text in numbered)
    return read_files(paths or [Path("-")], columns, report=report)


def _is_path(text: str) -> bool:
    try:
        return bool(text.strip()) and Path(text).exists()
    except (OSError, ValueError):
        # The text is longer than any name, or has characters that no name has.
        return False
