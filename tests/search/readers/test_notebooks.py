"""Cells of notebooks are parts of a document."""

import json

import pytest

from polyvec.search.documents import read_document
from tests.search.made_files import notebook


def test_cells_are_numbered_and_a_comment_in_code_is_no_heading():
    raw = notebook(("markdown", "# Foxes\nred"), ("code", "# a comment\nrun()"), ("code", ""))
    document = read_document(raw, "a.ipynb")
    assert document.unit == "page" and document.is_markdown
    parts = [document.text[start:end].strip() for start, end in document.parts()]
    assert parts == ["# Foxes\nred", "```\n# a comment\nrun()\n```"]


def test_what_a_cell_printed_is_read_but_no_picture():
    outputs = [
        {"output_type": "stream", "text": ["printed ", "words"]},
        {"output_type": "display_data", "data": {"image/png": "iVBORw", "text/plain": "<Figure>"}},
    ]
    cell = {"cell_type": "code", "source": "run()", "outputs": outputs}
    text = read_document(json.dumps({"cells": [cell]}).encode(), "a.ipynb").text
    assert "printed words" in text and "<Figure>" in text and "iVBOR" not in text


@pytest.mark.parametrize("raw", [b"[]", b"{}", b"7", b"{", b"[" * 100_000, b'{"cells": 7}'])
def test_what_is_no_notebook_says_so(raw):
    try:
        assert read_document(raw, "a.ipynb").text == ""
    except ValueError as error:
        assert "not a notebook" in str(error)
