"""Bounds of a JSON body that are checked before it is parsed.

A JSON parser holds Python's lock from the first byte to the last, and what it makes of a body may
have fifty times its size. Depth, number of values and number of fields of a body are therefore
counted first, in pieces, so that other threads run in between.
"""

import numpy as np
from jaxtyping import UInt8

from polyvec.server.errors import ApiError, ErrorCode

MAX_DEPTH = 64
"""Lists and objects that may lie in one another. No route needs more than eight."""

MAX_FIELDS = 64
"""Fields of one object."""

VALUES_PER_OBJECT = 4
"""One in this many values may be an object. Objects cost far more than numbers and texts."""

PIECE_BYTES = 262_144
"""Bytes that are counted at once."""

INLINE_BYTES = 65_536
INLINE_VALUES = 2_048
"""A body of no more bytes and values is parsed in the event loop."""

OTHER, OPEN_LIST, OPEN_OBJECT, COMMA, COLON, CLOSE = range(6)
KINDS = np.zeros(256, np.uint8)
KINDS[list(b"[{,:]}")] = [OPEN_LIST, OPEN_OBJECT, COMMA, COLON, CLOSE, CLOSE]
"""The kind of each byte. The kinds up to `COMMA` begin a value."""
QUOTE = ord('"')


def is_small(body: bytes) -> bool:
    """Whether a body is parsed in well under a millisecond."""
    return len(body) <= INLINE_BYTES and _max_values(body) <= INLINE_VALUES


def check_bounds(body: bytes, max_values: int) -> None:
    """Raise ApiError 400 if a body is nested too deeply, or has too many values or fields.

    A body that is not JSON may pass.
    """
    # Most bodies need no more than these counts, which include the characters in strings.
    is_flat = body.count(b"[") + body.count(b"{") <= MAX_DEPTH
    if is_flat and body.count(b":") <= MAX_FIELDS and _max_values(body) <= max_values:
        return
    marks = _find_marks(body, max_values)
    max_objects = max(MAX_DEPTH, max_values // VALUES_PER_OBJECT)
    if np.count_nonzero(marks == OPEN_OBJECT) > max_objects:
        raise _refused(f"it has more than {max_objects:,} objects; send fewer at once")
    depths = np.cumsum(_steps(marks), dtype=np.int32)
    if len(depths) and depths.max() > MAX_DEPTH:
        raise _refused(f"it is nested more than {MAX_DEPTH} levels deep")
    # At one depth, the fields of an object follow its brace. Sorting keeps this order.
    is_field = (marks == OPEN_OBJECT) | (marks == COLON)
    order = np.argsort(depths[is_field].astype(np.int8), kind="stable")
    braces = np.flatnonzero(marks[is_field][order] == OPEN_OBJECT)
    num_fields = np.diff(braces, append=len(order)) - 1
    if len(num_fields) and num_fields.max() > MAX_FIELDS:
        raise _refused(f"an object in it has more than {MAX_FIELDS} fields")


def _max_values(body: bytes) -> int:
    return 1 + body.count(b",") + body.count(b"[") + body.count(b"{")


def _find_marks(body: bytes, max_values: int) -> UInt8[np.ndarray, " _"]:
    """The kinds of the brackets, commas and colons outside strings, in their order.

    Raises ApiError 400 if there are more values than `max_values`.
    """
    found: list[UInt8[np.ndarray, " _"]] = []
    start, in_string, num_values = 0, 0, 1
    while start < len(body):
        piece = body[start : start + PIECE_BYTES]
        # An escape must not be cut in two.
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = body[start : start + PIECE_BYTES + 1]
        start += len(piece)
        characters = np.frombuffer(piece.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
        if not len(characters):
            continue
        # An odd number of quotes before a character means that it is in a string.
        odd = (np.cumsum(characters == QUOTE, dtype=np.uint8) + np.uint8(in_string)) & 1
        in_string = int(odd[-1])
        kinds = KINDS[characters[odd == 0]]
        marks = kinds[kinds != OTHER]
        found.append(marks)
        num_values += int(np.count_nonzero(marks <= COMMA))
        if num_values > max_values:
            raise _refused(f"it has more than {max_values:,} values; send fewer at once")
    return np.concatenate(found) if found else np.empty(0, np.uint8)


def _steps(marks: UInt8[np.ndarray, " _"]) -> np.ndarray:
    """The change of depth at each mark."""
    opens = (marks == OPEN_LIST) | (marks == OPEN_OBJECT)
    return opens.astype(np.int8) - (marks == CLOSE).astype(np.int8)


def _refused(reason: str) -> ApiError:
    return ApiError(ErrorCode.INPUT_INVALID_JSON, f"the body is refused: {reason}", param=None)
