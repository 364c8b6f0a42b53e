"""Strict parsing of request bodies, and the field types that several routes share.

Bodies follow Jina's OpenAPI document (2026.04.02) and OpenAI's embeddings API. Unknown fields are
errors on these routes, and ignored on routes whose own servers ignore them. Values are not
converted: "8" is not 8.
"""

import json
import re
import reprlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from polyvec.server.errors import ApiError, ErrorCode
from polyvec.server.json_bounds import check_bounds
from polyvec.server.limits import Limits
from polyvec.server.serialise import COHERE_ENCODINGS, JINA_ENCODINGS

ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"
"""The tokenizer reads half of a surrogate pair as this character."""

MAX_ERRORS = 10
"""Errors that one answer lists."""

MAX_SHOWN_CHARACTERS = 80
"""Characters of a wrong value that an error repeats."""

SHORT_REPR = reprlib.Repr()
"""Shows the beginning of a value, without writing all of it first."""
SHORT_REPR.maxstring = SHORT_REPR.maxlong = SHORT_REPR.maxother = 2 * MAX_SHOWN_CHARACTERS
SHORT_REPR.maxlevel = 4

SURROGATE_CHARACTERS = 65_536
"""Characters in which surrogates are replaced at once. Python's lock is held meanwhile."""

MAX_DIGITS = 100
"""Digits of an integer. No field needs more than ten."""

VALUES_PER_ITEM = 8
MIN_VALUES = 1_000
"""A body may have `MIN_VALUES` JSON values, and `VALUES_PER_ITEM` for each text of a request."""

TokenIds = list[list[int]]

STRING_SCHEMA = {"type": "string", "pattern": "\\S"}
TEXT_SCHEMA = {
    "anyOf": [
        STRING_SCHEMA,
        {
            "type": "object",
            "properties": {"text": STRING_SCHEMA},
            "required": ["text"],
            "additionalProperties": False,
        },
    ]
}
TEXT_LIST_SCHEMA = {"type": "array", "items": TEXT_SCHEMA, "minItems": 1}
TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 1}


class StrictModel(BaseModel):
    """The body of a request, or a part of it."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    @classmethod
    def max_values(cls, limits: Limits) -> int:
        """Maximum number of JSON values in a body, with which it is refused before it is parsed."""
        return MIN_VALUES + VALUES_PER_ITEM * limits.items


class TolerantModel(StrictModel):
    """The body of a request to a route of another server, which ignores unknown fields.

    Clients of these servers send fields that the server does not have, for example those of a
    similar server.
    """

    model_config = ConfigDict(extra="ignore")


def parse_texts(value: Any) -> list[str]:
    """The list of texts that a text, `{"text": ...}`, or a list of these stands for."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [_parse_text(value, "it")]
    if not isinstance(value, list):
        raise ValueError(f"must be a text or a list of texts, not {_type_name(value)}")
    if not value:
        raise ValueError("must hold at least one text")
    return [_parse_text(item, f"item {number}") for number, item in enumerate(value)]


def parse_input(value: Any) -> list[str] | TokenIds:
    """The texts of `parse_texts`, or the token ids of one text or of several."""
    if isinstance(value, list) and value:
        if isinstance(value[0], int):
            return [_parse_ids(value, "it")]
        if isinstance(value[0], list):
            return [_parse_ids(item, f"item {number}") for number, item in enumerate(value)]
    return parse_texts(value)


def parse_id_lists(value: Any) -> TokenIds:
    """The token ids of one text or of several."""
    texts = [ids for ids in parse_input(value) if isinstance(ids, list)]
    if not texts:
        raise ValueError("must be a list of token ids, or a list of such lists")
    return texts


def _parse_text(value: Any, name: str) -> str:
    if isinstance(value, dict):
        if set(value) != {"text"}:
            raise ValueError(f'{name} is an object and must have one field, "text"')
        value = value["text"]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_type_name(value)}, must be a text")
    return value


def _parse_ids(value: Any, name: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list of token ids")
    for number in value:
        # Python counts True as an int, but JSON does not.
        if type(number) is not int or abs(number) >= 2**31:
            raise ValueError(f"{name} holds {_show(number)}, which is not a token id")
    return value


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _show(value: Any) -> str:
    text = SHORT_REPR.repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "..."


Texts = Annotated[
    list[str],
    PlainValidator(parse_texts),
    WithJsonSchema({"anyOf": [*TEXT_SCHEMA["anyOf"], TEXT_LIST_SCHEMA]}),
]
Input = Annotated[
    list[str] | TokenIds,
    PlainValidator(parse_input),
    WithJsonSchema(
        {
            "anyOf": [
                *TEXT_SCHEMA["anyOf"],
                TEXT_LIST_SCHEMA,
                TOKEN_IDS_SCHEMA,
                {"type": "array", "items": TOKEN_IDS_SCHEMA, "minItems": 1},
            ]
        }
    ),
]
IdLists = Annotated[
    TokenIds,
    PlainValidator(parse_id_lists),
    WithJsonSchema({"anyOf": [TOKEN_IDS_SCHEMA, {"type": "array", "items": TOKEN_IDS_SCHEMA}]}),
]
Label = Annotated[str, Field(min_length=1, max_length=1_000)]
Dimensions = Annotated[int, Field(ge=1, le=16_384)]
ItemCount = Annotated[int, Field(ge=1, le=1_000_000)]
if TYPE_CHECKING:
    JinaEncoding = str
    CohereEncoding = str
else:
    # Type checkers do not accept a literal type that is computed.
    JinaEncoding = Literal[JINA_ENCODINGS]
    CohereEncoding = Literal[COHERE_ENCODINGS]

MAX_TOKENISE_CHARACTERS = 1_000_000
"""Limit for texts that are only split or tokenised, whose answer has many times their bytes."""

Request = TypeVar("Request", bound=StrictModel)


def read_body(model: type[Request], body: bytes, limits: Limits) -> Request:
    """The request of a body. Raises ApiError 400 or 422.

    Memory and time follow the number of bytes, values and errors, which are all bounded.
    """
    check_bounds(body, model.max_values(limits))
    return validate(model, parse_json(body))


def parse_json(body: bytes) -> Any:
    """The JSON value of a body. Raises ApiError 400 for what a strict parser refuses.

    It refuses bytes that are not UTF-8, duplicate keys, NaN and Infinity, integers of hundreds of
    digits, and nesting that is too deep. Halves of surrogate pairs become U+FFFD.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_parse_int,
            parse_constant=_refuse_constant,
        )
        return _replace_surrogates(value) if ESCAPED_SURROGATE.search(body) else value
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)[:200]
    raise ApiError(ErrorCode.INPUT_INVALID_JSON, f"the body is not valid JSON: {reason}")


def validate(model: type[Request], value: Any) -> Request:
    """The request that a JSON value describes. Raises ApiError 422 that lists every error."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)[:MAX_ERRORS]
    errors = [
        {
            "field": ".".join(map(_name_field, fault["loc"])) or "body",
            "message": fault["msg"].removeprefix("Value error, "),
            "type": fault["type"],
            "input": _show(fault["input"]),
        }
        for fault in faults
    ]
    message = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
    raise ApiError(
        ErrorCode.INPUT_VALIDATION, message, param=str(errors[0]["field"]), errors=errors
    )


def _name_field(part: str | int) -> str:
    """A part of the path to a field, which may be the name of an unknown field of any length."""
    return str(part)[:MAX_SHOWN_CHARACTERS]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen = set[str]()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {_show(duplicate)} occurs twice")
    return value


def _parse_int(digits: str) -> int:
    # Python's time for an integer grows with the square of its digits.
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        if value.isascii():
            return value
        parts = [
            SURROGATE.sub(REPLACEMENT, value[first : first + SURROGATE_CHARACTERS])
            for first in range(0, len(value), SURROGATE_CHARACTERS)
        ]
        return "".join(parts)
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        # Two keys that differ only in halves of pairs would become one.
        return _unique(
            [(_replace_surrogates(key), _replace_surrogates(item)) for key, item in value.items()]
        )
    return value
