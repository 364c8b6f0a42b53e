"""Front matter is a part by itself, in which `#` begins no heading."""

import pytest

from polyvec.search.documents import read_document
from polyvec.search.files import File
from polyvec.search.passages import split_file

FRONTS = [
    "---\ntitle: Tea\n# a remark\nauthor: me\n---\n",
    "---\r\n# a remark\r\ntitle: Tea\r\n---\r\n",
    '+++\n# a remark\ntitle = "Tea"\n[extra]\n+++\n',
    "---\ntitle: Tea\n# a remark\n...\n",
]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", ["a.md", "a.mdx"])
def test_a_passage_holds_the_front_matter_whole(searcher, tmp_path, front, name):
    raw = (front + "\n# Brewing\n\nFour minutes.\n").encode()
    split = split_file(tmp_path, File(name, raw, "", 0), searcher.tokenizer)
    texts = [split.document.text[passage.start : passage.end] for passage in split.passages]
    assert texts == [front.strip(), "# Brewing\n\nFour minutes."]
    assert [passage.headings for passage in split.passages] == [(), ("Brewing",)]
    assert split.document.locate(split.passages[1].start) == front.count("\n") + 2


@pytest.mark.parametrize(
    "text",
    ["---\nA line between rules.\n---\n# One\n", "# One\n---\na: b\n---\n", "---\na: b\n", ""],
)
def test_a_rule_is_no_front_matter(text):
    assert read_document(text.encode(), "a.md").front_matter == 0
    assert read_document(FRONTS[0].encode(), "a.txt").front_matter == 0
