"""Bodies are counted before they are parsed: depth, values, objects and fields."""

import json
import random
import tracemalloc

import pytest

from polyvec.server import json_bounds
from polyvec.server.errors import ApiError
from polyvec.server.json_bounds import MAX_DEPTH, MAX_FIELDS, check_bounds, is_small

STRINGS = ["", "a,b", "[{", "]}:", 'say "no"', "back\\slash", "\\", '\\"', "猫", "\ud800", "\n"]


def make_value(rng, depth):
    """A random JSON value, whose strings hold everything that means something outside them."""
    kind = rng.choice("ssnlo") if depth else "s"
    if kind == "s":
        return "".join(rng.choices(STRINGS, k=rng.randrange(4)))
    if kind == "n":
        return rng.choice([1, -2.5, None, True])
    values = [make_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    if kind == "l":
        return values
    return {f"{n}{rng.choice(STRINGS)}": value for n, value in enumerate(values)}


def count(value):
    """The depth of a value, its values as the bounds count them, and the most fields."""
    if isinstance(value, list | dict):
        parts = list(value.values()) if isinstance(value, dict) else value
        counts = [count(part) for part in parts]
        depth = 1 + max((one[0] for one in counts), default=0)
        # A bracket and each comma, whatever stands between them.
        size = 1 + max(0, len(parts) - 1) + sum(one[1] for one in counts)
        own = len(value) if isinstance(value, dict) else 0
        return depth, size, max([own, *(one[2] for one in counts)])
    return 0, 0, 0


def is_refused(body, max_values):
    try:
        check_bounds(body, max_values)
    except ApiError as error:
        assert error.status == 400
        return True
    return False


def test_the_bounds_hold_exactly_whatever_strings_contain(monkeypatch):
    """Pieces of a few bytes cut strings and escapes everywhere."""
    rng = random.Random(1)
    monkeypatch.setattr(json_bounds, "MAX_DEPTH", 4)
    monkeypatch.setattr(json_bounds, "MAX_FIELDS", 3)
    monkeypatch.setattr(json_bounds, "VALUES_PER_OBJECT", 1)
    refused = 0
    for _ in range(1_500):
        value = make_value(rng, 6)
        body = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        monkeypatch.setattr(json_bounds, "PIECE_BYTES", rng.randint(1, 9))
        depth, size, fields = count(value)
        max_values = rng.randint(4, 60)
        expected = depth > 4 or fields > 3 or size + 1 > max_values
        assert is_refused(body, max_values) == expected, body
        refused += expected
    assert 100 < refused < 1_400


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded(opening, closing):
    for depth in (MAX_DEPTH, MAX_DEPTH + 1, 10_000):
        body = (opening * depth + "1" + closing * depth).encode()
        assert is_refused(body, 1_000_000) == (depth > MAX_DEPTH)


def test_fields_of_every_object_are_bounded():
    for number in (MAX_FIELDS, MAX_FIELDS + 1):
        wide = {str(n): {} for n in range(number)}
        assert is_refused(json.dumps([[{}, wide], {"a": [1, {}]}]).encode(), 1_000) == (
            number > MAX_FIELDS
        )


def test_objects_are_bounded_more_strictly_than_values():
    assert not is_refused(json.dumps([1] * 900).encode(), 1_000)
    assert is_refused(json.dumps([{}] * 900).encode(), 2_000)


def test_what_is_no_json_may_pass_but_ends():
    for body in (b"", b'"', b"]" * 1_000, b'{"a', b"\\" * 999, b'"\\', b"\xff" * 10, b":" * 99):
        check_bounds(body, 10_000)
        is_small(body)


def test_a_small_body_is_recognised():
    assert is_small(json.dumps({"model": "m", "input": ["a text, with commas"] * 32}).encode())
    assert not is_small(json.dumps([[1]] * 3_000).encode())
    assert not is_small(b'"' + b"x" * 100_000 + b'"')


def test_counting_takes_little_memory():
    for body in (b'"' * 4_000_000, b"[" * 4_000_000, b'["' + b"\\" * 4_000_000 + b'"]'):
        tracemalloc.start()
        is_refused(body, 300_000)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
        tracemalloc.stop()
