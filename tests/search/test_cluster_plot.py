import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

from polyvec.search.cluster_plot import find_fonts, render_page, write_plot
from polyvec.search.clustering import Clusters


def hostile():
    bad = "<script>alert(1)</script>\"'&"
    found = Clusters(
        texts=[bad, "b"],
        vectors=np.eye(2, dtype=np.float32),
        cluster_ids=np.array([0, -1]),
        scores=np.array([1.0, 0.0]),
        words=[["<b>$x$", "温泉", "\U0010fffd"]],
    )
    return bad, found


def test_a_page_shows_texts_as_text_and_loads_nothing():
    bad, found = hostile()
    page = render_page(
        found, np.array([[0.0, 1.0], [1.0, 0.0]]), locations=[bad, "b"], texts=[bad, "b"], title=bad
    )
    tags = set()
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attrs: tags.add(tag)
    reader.feed(page)
    assert "script" not in tags
    assert "b" not in tags
    assert not re.search(r"https?:|src=|@import|url\(", page)
    dots = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert [title.text for title in dots.iter("title")] == ["b\nb", f"{bad}\n{bad}"]


def test_a_png_of_any_words_is_drawn(tmp_path):
    bad, found = hostile()
    path = tmp_path / "map.png"
    points = np.array([[0.0, 1.0], [1.0, 0.0]])
    write_plot(path, found, points, locations=["a", "b"], texts=["a", "b"], title=bad)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    write_plot(path, found, points, locations=["a", "b"], texts=["a", "b"], title=bad)
    assert path.read_bytes() == first
    assert find_fonts("plain \U0010fffd")[1] == {0x10FFFD: "□"}
