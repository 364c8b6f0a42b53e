"""Passages of hostile documents stay small."""

import pytest

from polyvec.search.documents import read_document
from polyvec.search.files import File
from polyvec.search.passages import split_file, texts_with_headings


@pytest.mark.parametrize("levels", [[1], [1, 2, 3, 4, 5, 6]])
def test_a_long_heading_is_repeated_in_short(levels, encoder, tmp_path):
    titles = "".join("#" * level + " " + "long heading " * 1_000 + "\n\n" for level in levels)
    file = File("a.md", (titles + "fox " * 500).encode(), "", 0)
    texts = list(texts_with_headings(split_file(tmp_path, file, encoder.tokenizer)))
    below = [(text, length) for text, length in texts if "fox" in text]
    assert below
    for text, length in below:
        assert 0 < length <= 202 + 2 * len(levels)
        assert text.startswith("long heading long") and text[length:].strip().startswith("fox")


def test_the_names_of_columns_are_repeated_in_short():
    source = "n" * 5_000 + ",food\n" + "fox,mice\n" * 50
    document = read_document(source.encode(), "a.csv")
    assert len(document.text) < 50 * 150
    assert document.text.count("food: mice") == 50 and not document.cut


def test_a_table_that_repeats_much_is_cut_with_a_reason():
    source = ",".join(f"a rather long name {number}" for number in range(1_000)) + "\n"
    source += (",".join("1" * 1_000) + "\n") * 200
    document = read_document(source.encode(), "a.csv")
    assert len(document.text) <= 8 * len(source) + 1_000_000
    assert document.cut.startswith("only the text before line ")
    last = document.locate(len(document.text) - 1)
    assert f"line {last + 1} " in document.cut
