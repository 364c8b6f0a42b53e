"""What goes over the wire: requests, responses, and the strictness with which they are read.

Bodies follow Jina's OpenAPI document (2026.04.02) and OpenAI's embeddings API; unknown fields are
errors, and nothing is coerced: "8" is not 8.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from polyvec.server.errors import ApiError

ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"
"""The tokenizer reads half of a surrogate pair so."""

MAX_ERRORS = 10
"""Faults named in one answer."""

MAX_SHOWN = 80
"""Characters of a wrong value that are sent back."""

Encoding = Literal["float", "base64", "binary", "ubinary"]
Encodings = Encoding | Annotated[list[Encoding], Field(min_length=1, max_length=4)] | None
Tokens = list[list[int]]

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
MANY_SCHEMA = {"type": "array", "items": TEXT_SCHEMA, "minItems": 1}
TOKENS_SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 1}


class Wire(BaseModel):
    """Anything read from a request."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def read_texts(value: Any) -> list[str]:
    """A text, `{"text": ...}`, or a list of these, as a list of texts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [_text(value, "it")]
    if not isinstance(value, list):
        raise ValueError(f"must be a text or a list of texts, not {_kind(value)}")
    if not value:
        raise ValueError("must hold at least one text")
    return [_text(item, f"item {number}") for number, item in enumerate(value)]


def read_input(value: Any) -> list[str] | Tokens:
    """What `read_texts` reads, or one text's token ids, or several texts'."""
    if isinstance(value, list) and value:
        if isinstance(value[0], int):
            return [_ids(value, "it")]
        if isinstance(value[0], list):
            return [_ids(item, f"item {number}") for number, item in enumerate(value)]
    return read_texts(value)


def _text(value: Any, name: str) -> str:
    if isinstance(value, dict):
        if set(value) != {"text"}:
            raise ValueError(f'{name} is an object and must have one field, "text"')
        value = value["text"]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_kind(value)}, must be a text")
    return value


def _ids(value: Any, name: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list of token ids")
    for number in value:
        # True is an int for Python, and not for anybody else.
        if type(number) is not int or abs(number) >= 2**31:
            raise ValueError(f"{name} holds {_shown(number)}, which is no token id")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


Texts = Annotated[
    list[str],
    PlainValidator(read_texts),
    WithJsonSchema({"anyOf": [*TEXT_SCHEMA["anyOf"], MANY_SCHEMA]}),
]
Input = Annotated[
    list[str] | Tokens,
    PlainValidator(read_input),
    WithJsonSchema(
        {
            "anyOf": [
                *TEXT_SCHEMA["anyOf"],
                MANY_SCHEMA,
                TOKENS_SCHEMA,
                {"type": "array", "items": TOKENS_SCHEMA, "minItems": 1},
            ]
        }
    ),
]


class EmbeddingRequest(Wire):
    """POST /v1/embeddings: Jina's fields and OpenAI's, told apart by their names."""

    model: str
    """The model's name; GET /v1/models lists them."""
    input: Input
    """A text, an object with "text", a list of these, or token ids of this model's tokenizer."""
    task: str | None = None
    """What the vectors are for, one of the model's tasks; null is the bare encoder."""
    dimensions: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Numbers in a vector, up to the model's width; best one of the model's Matryoshka sizes."""
    late_chunking: bool | None = None
    """Read all inputs as one document, joined by single spaces; one vector each all the same."""
    embedding_type: Encodings = None
    """The vectors' encoding. With a list, `embedding` has the first, `embedding_types` all."""
    encoding_type: Encodings = None
    """LlamaIndex's name for `embedding_type`."""
    encoding_format: Literal["float", "base64"] | None = None
    """OpenAI's name for `embedding_type`."""
    normalized: bool | None = True
    """Scale every vector to length 1."""
    truncate: bool | None = False
    """Cut texts that are too long, instead of refusing them."""
    user: str | None = None
    """OpenAI's; not used."""
    output: Literal["dense", "sparse", "multi_vector"] = "dense"
    """One vector a text, weights of tokens, or one vector a token. Ours."""

    @model_validator(mode="after")
    def _check_encodings(self) -> "EmbeddingRequest":
        given = (self.embedding_type, self.encoding_type, self.encoding_format)
        named = [[e] if isinstance(e, str) else e for e in given if e is not None]
        if any(other != named[0] for other in named):
            raise ValueError("embedding_type, encoding_type and encoding_format differ")
        return self

    @property
    def encodings(self) -> list[Encoding]:
        """The vectors' encodings, at least one."""
        given = self.embedding_type or self.encoding_type or self.encoding_format or "float"
        return [given] if isinstance(given, str) else given


class Usage(BaseModel):
    """Tokens the model read, special tokens and instructions included."""

    total_tokens: int


class EmbeddingUsage(Usage):
    """Usage of an embedding request."""

    prompt_tokens: int


class Embedding(BaseModel):
    """One text's vector, or the weights of its tokens."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | list[int] | str | dict[str, float]
    embedding_types: dict[Encoding, list[float] | list[int] | str] | None = None


class TokenEmbeddings(BaseModel):
    """One text's vectors, one a token."""

    object: Literal["embeddings"]
    index: int
    embeddings: list[list[float]] | list[list[int]] | list[str]


class EmbeddingResponse(BaseModel):
    """The vectors, in the inputs' order."""

    object: Literal["list"]
    model: str
    data: list[Embedding] | list[TokenEmbeddings]
    usage: EmbeddingUsage


class OpenAIError(BaseModel):
    """The part of an error that OpenAI's clients read."""

    message: str
    type: str
    param: str | None
    code: str


class FieldError(BaseModel):
    """One fault of a request."""

    field: str
    message: str
    type: str
    input: Any = None


class AnyError(BaseModel):
    """What every error's body has."""

    detail: str
    code: str
    request_id: str
    errors: list[FieldError] | None = None


class ErrorResponse(AnyError):
    """An error as Jina's and OpenAI's clients read it."""

    error: OpenAIError


class TeiErrorResponse(AnyError):
    """An error as TEI's clients read it."""

    error: str
    error_type: str


class CohereErrorResponse(AnyError):
    """An error as Cohere's clients read it."""

    message: str
    id: str


Request = TypeVar("Request", bound=Wire)


def read_json(body: bytes) -> Any:
    """The body's JSON value. Raises ApiError for what a strict reader refuses.

    That is: bytes that are not UTF-8, duplicate keys, NaN and Infinity, numbers of thousands of
    digits, and nesting too deep. Halves of surrogate pairs become U+FFFD.
    """
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
        return _replace_surrogates(value) if ESCAPED_SURROGATE.search(body) else value
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)[:200]
    raise ApiError(400, "INPUT_INVALID_JSON", f"the body is not the JSON expected: {reason}")


def validate(kind: type[Request], value: Any) -> Request:
    """The request, or ApiError 422 that names every fault."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)[:MAX_ERRORS]
    errors = [
        {
            "field": ".".join(map(str, fault["loc"])) or "body",
            "message": fault["msg"].removeprefix("Value error, "),
            "type": fault["type"],
            "input": _shown(fault["input"]),
        }
        for fault in faults
    ]
    sentence = "; ".join(f"{one['field']}: {one['message']}" for one in errors)
    raise ApiError(422, "INPUT_VALIDATION", sentence, param=str(errors[0]["field"]), errors=errors)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {_shown(twice)} is there twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return SURROGATE.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {SURROGATE.sub(REPLACEMENT, k): _replace_surrogates(v) for k, v in value.items()}
    return value
