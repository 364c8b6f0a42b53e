"""Texts as callers give them."""

from collections import ChainMap, OrderedDict
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

from polyvec.texts import find_pair_positions, list_items, replace_surrogates


@pytest.mark.parametrize(
    "items",
    [
        ["a", "b"],
        ("a", "b"),
        iter(["a", "b"]),
        (letter for letter in "ab"),
        {"x": "a", "y": "b"}.values(),
        {"a": 1, "b": 2}.keys(),
        pd.Series(["a", "b"]),
        pd.Index(["a", "b"]),
        np.array(["a", "b"]),
    ],
    ids=lambda items: type(items).__name__,
)
def test_any_iterable_of_texts_is_listed_once(items):
    assert list_items(items, "texts") == ["a", "b"]


class Keys:
    """A mapping that says so by its methods only."""

    def keys(self):
        return iter(["a", "b"])

    def __iter__(self):
        return self.keys()

    def __getitem__(self, key):
        return key.upper()


class Table(list):
    """A table of another library: iterating over it gives the names of its columns."""

    column_names = ("a", "b")


@pytest.mark.parametrize(
    "items",
    [
        {"a": "text"},
        OrderedDict(a="text"),
        ChainMap({"a": "text"}),
        MappingProxyType({"a": "text"}),
        pd.DataFrame({"text": ["a"]}),
        Keys(),
        Table(["a"]),
        b"text",
        None,
        7,
    ],
    ids=lambda items: type(items).__name__,
)
def test_what_would_give_keys_or_no_texts_is_refused_by_name(items, monkeypatch):
    # Annotations are not checked, as for users.
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"^candidates is .*{type(items).__name__}"):
        list_items(items, "candidates")


@pytest.mark.parametrize("character", ["\U00010000", "\U0001f44d", "\U0010ffff"])
def test_halves_are_joined_to_their_character(character):
    halves = character.encode("utf-16-le")
    first, second = (halves[i : i + 2].decode("utf-16-le", "surrogatepass") for i in (0, 2))
    assert replace_surrogates(f"a{first}{second}b") == f"a{character}b"
    # In the wrong order, or apart, they are no character.
    assert replace_surrogates(f"{second}{first}") == "\ufffd\ufffd"
    assert replace_surrogates(f"{first} {second}") == "\ufffd \ufffd"
    assert replace_surrogates(f"{first}{first}{second}") == f"\ufffd{character}"


@pytest.mark.parametrize("text", ["", "fox", "füchse", "a\ud83d", "\ud83d\udc4d", "é\ud83d\udc4d!"])
def test_positions_lead_back_to_the_text(text):
    joined = replace_surrogates(text)
    positions = find_pair_positions(text)
    if positions is None:
        assert len(joined) == len(text)
        return
    assert len(positions) == len(joined) + 1
    found = [replace_surrogates(text[start:end]) for start, end in pairwise(positions)]
    assert found == list(joined)
