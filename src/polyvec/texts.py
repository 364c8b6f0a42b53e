"""Texts as callers give them: listed once, checked, cut into blocks, free of surrogates."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, repeat
from typing import TypeVar

import numpy as np
from jaxtyping import Int32

MAX_BLOCK_TEXTS = 4_096
MAX_BLOCK_CHARACTERS = 4_000_000
"""Texts are encoded in blocks no larger than these, and sorted by length within a block."""

TaskNames = str | None | Iterable[str | None]
"""One task for all texts, or one task per text."""

Item = TypeVar("Item")

SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of a surrogate pair, which Python strings may contain but UTF-8 cannot."""

SURROGATE_PAIRS = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""A character in two halves, as text in UTF-16 has it: from PDF files, JavaScript and Java."""

REPLACEMENT = "\ufffd"
"""Replaces a half that stands alone: one character for one, so that offsets stay valid."""


def list_items(items: Iterable[Item], name: str) -> list[Item]:
    """List what a caller gives. An iterator can be read only once, so every function lists first.

    A single string counts as one item. Raises ValueError, which begins with `name`, for a table or
    a mapping, because iterating over it gives the names of its columns or its keys, and for
    anything else without texts or other items in it.

    >>> list_items("a fox", "texts"), list_items((word for word in ("a", "b")), "texts")
    (['a fox'], ['a', 'b'])
    """
    if isinstance(items, str):
        return [items]  # pyright: ignore[reportReturnType]
    return list(check_items(items, name))


def check_items(items: Iterable[Item], name: str) -> Iterable[Item]:
    """Return `items`. Raises ValueError for a table, a mapping, bytes, or no iterable at all."""
    kind = type(items).__name__
    if _has_keys(items):
        raise ValueError(
            f"{name} is a {kind}: iterating over it gives names of columns or keys instead of "
            "values; give one of its columns or a list of its values"
        )
    if isinstance(items, bytes | bytearray | memoryview):
        raise ValueError(f"{name} is {kind}: decode it first, for example with .decode('utf-8')")
    if not isinstance(items, Iterable):
        raise ValueError(f"{name} is {kind}, must be a list or another iterable")
    return items


def _has_keys(items: object) -> bool:
    """Whether iterating gives names: a mapping, or a table of any library."""
    if isinstance(items, Mapping) or hasattr(items, "columns") or hasattr(items, "column_names"):
        return True
    # A column of pandas has keys too, but it iterates over its values.
    return hasattr(items, "keys") and getattr(items, "ndim", None) != 1


def split_into_blocks(
    texts: Iterable[str], task: TaskNames
) -> Iterator[tuple[list[str], list[str | None]]]:
    """Yield texts and their tasks, some thousands at a time. Raises ValueError for a bad text."""
    one_for_all = task is None or isinstance(task, str)
    tasks: Iterator[str | None] = (
        repeat(task) if task is None or isinstance(task, str) else iter(check_items(task, "task"))
    )
    block: list[str] = []
    block_tasks: list[str | None] = []
    characters = 0
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"text {number} (counted from 0) must be a str, not {type(text).__name__}"
            )
        own_task = list(islice(tasks, 1))
        if not own_task:
            raise ValueError(f"there are more texts than the {number} tasks")
        full = len(block) == MAX_BLOCK_TEXTS or characters + len(text) > MAX_BLOCK_CHARACTERS
        if block and full:
            yield block, block_tasks
            block, block_tasks, characters = [], [], 0
        block.append(text)
        block_tasks.extend(own_task)
        characters += len(text)
    if not one_for_all and list(islice(tasks, 1)):
        raise ValueError("there are more tasks than texts")
    if block:
        yield block, block_tasks


def replace_surrogates(text: str) -> str:
    r"""Join the halves of surrogate pairs, and replace every other half.

    >>> replace_surrogates("a \ud83d\udc4d b \ud83d c")
    'a 👍 b � c'
    """
    if text.isascii() or not SURROGATES.search(text):
        return text
    return SURROGATES.sub(REPLACEMENT, SURROGATE_PAIRS.sub(_join_pair, text))


def find_pair_positions(text: str) -> Int32[np.ndarray, " _"] | None:
    r"""The position in `text` of every character of `replace_surrogates(text)`, and of its end.

    None if there are no pairs, so that the positions are the same.

    >>> find_pair_positions("a\ud83d\udc4db").tolist()
    [0, 1, 3, 4]
    """
    if text.isascii():
        return None
    seconds = [pair.start() + 1 for pair in SURROGATE_PAIRS.finditer(text)]
    if not seconds:
        return None
    return np.delete(np.arange(len(text) + 1, dtype=np.int32), seconds)


def _join_pair(pair: re.Match[str]) -> str:
    first, second = map(ord, pair[0])
    return chr(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))


def is_inside_pair(text: str, position: int) -> bool:
    """Whether a cut at `position` would separate the halves of a surrogate pair."""
    return SURROGATE_PAIRS.match(text, position - 1) is not None if position else False
