"""The cells of Jupyter notebooks: their text, their code, and the text that the code printed."""

from collections.abc import Iterator
from typing import Any

from polyvec.search.readers.pieces import Piece
from polyvec.text_rows import parse_json

MAX_OUTPUT_CHARACTERS = 2_000
"""More of what a cell printed is left out."""


def notebook_pieces(source: str) -> Iterator[Piece]:
    """Yield the number and the text of each cell. Raises ValueError if it is no notebook."""
    try:
        notebook = parse_json(source)
    except ValueError as error:
        raise ValueError(f"not a notebook ({error})") from None
    for number, cell in enumerate(_cells(notebook), 1):
        code = _text(cell.get("source", cell.get("input")))
        if cell.get("cell_type") == "code":
            # In a fence, `#` begins a comment and no heading.
            code = f"```\n{code}\n```\n" if code.strip() else ""
            outputs = "\n".join(_output_texts(cell))[:MAX_OUTPUT_CHARACTERS]
            if outputs.strip():
                code += f"```\n{outputs}\n```\n"
        if code.strip():
            yield number, code + "\n\n"


def _cells(notebook: Any) -> Iterator[dict[str, Any]]:
    """Yield the cells. Before version 4 of the format they stood in worksheets."""
    sheets = [notebook, *_dicts(notebook, "worksheets")] if isinstance(notebook, dict) else []
    if not any("cells" in sheet for sheet in sheets):
        raise ValueError("not a notebook (it has no cells)")
    for sheet in sheets:
        yield from _dicts(sheet, "cells")


def _output_texts(cell: dict[str, Any]) -> Iterator[str]:
    for output in _dicts(cell, "outputs"):
        data = output.get("data", output)
        shown = data.get("text/plain") if isinstance(data, dict) else None
        yield _text(output.get("text", shown))


def _dicts(parent: dict[str, Any], name: str) -> list[dict[str, Any]]:
    children = parent.get(name)
    children = children if isinstance(children, list) else []
    return [child for child in children if isinstance(child, dict)]


def _text(value: Any) -> str:
    """A text, which may be written as a list of its lines."""
    if isinstance(value, list):
        return "".join(line for line in value if isinstance(line, str))
    return value if isinstance(value, str) else ""
