"""Errors of the API: the only list of error codes, and the form in which clients read an error.

To add an error code, add a member to `ErrorCode`. The OpenAPI document and the table in
docs/serving.md are generated from this list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel


class ErrorCode(Enum):
    """The codes that an error may have: HTTP status, meaning, and what a client can do."""

    INPUT_INVALID = (
        400,
        "Invalid or unsupported value, for example an empty text or an unknown task",
        "Correct the value that the message names.",
    )
    INPUT_INVALID_HTTP = (
        400,
        "The request is not valid HTTP/1.1",
        "Correct what the message names.",
    )
    INPUT_INVALID_JSON = (400, "The body is not valid JSON", "Send valid JSON in UTF-8.")
    INPUT_LABEL_LIMIT_EXCEEDED = (
        400,
        "A classifier has too many labels",
        "Train a second classifier.",
    )
    INPUT_MODEL_NOT_FOUND = (
        400,
        "The server has no model of this name",
        "`GET /v1/models` lists the models.",
    )
    AUTH_INVALID_API_KEY = (401, "The API key is unknown", "Check the API key.")
    AUTH_INVALID_FORMAT = (
        401,
        "The Authorization header is malformed",
        "Send `Authorization: Bearer KEY`.",
    )
    AUTH_MISSING_API_KEY = (401, "The API key is missing", "Send `Authorization: Bearer KEY`.")
    RESOURCE_NOT_FOUND = (404, "Not found", "`GET /openapi.json` lists all routes.")
    METHOD_NOT_ALLOWED = (
        405,
        "The path does not support this method",
        "`GET /openapi.json` lists all routes.",
    )
    REQUEST_TIMEOUT = (
        408,
        "The client took too long to send the request",
        "Send the request within `--read-seconds`.",
        "SERVICE_TIMEOUT",
    )
    CONFLICT_BATCH_FINISHED = (
        409,
        "The batch job has already finished",
        "Fetch its output, or delete it with `?delete_files=true`.",
    )
    CONFLICT_CHANGE_IN_PROGRESS = (
        409,
        "Another change of the models is in progress (admin address only)",
        "Try again when it has ended.",
    )
    CONFLICT_MODEL_CHANGED = (
        409,
        "The classifier was trained with other weights than those that the server has",
        "Train a new classifier.",
    )
    CONFLICT_MODEL_NAME = (
        409,
        "The name is that of the default model, which stays, or an alias (admin address only)",
        "Name another model, or put another folder under the name of the default model.",
    )
    INPUT_TOO_LARGE = (413, "The body is too large", "Send fewer texts per request.")
    REQUEST_LINE_TOO_LONG = (
        414,
        "The URL is too long",
        "Send long values in the body.",
        "INPUT_URL_TOO_LONG",
    )
    INPUT_INVALID_TYPE = (
        415,
        "The body is not declared as JSON, or is compressed",
        "Send `Content-Type: application/json` and no `Content-Encoding`.",
    )
    INPUT_VALIDATION = (
        422,
        "A field is missing, unknown, or of the wrong type",
        'Correct the fields listed in `errors`. Values are not converted: `"8"` is not 8.',
    )
    RATE_BATCH_LIMIT_EXCEEDED = (
        429,
        "The API key has too many batch jobs, or too many bytes in them",
        "Delete finished jobs, or wait `Retry-After` seconds and try again.",
    )
    RATE_CONCURRENCY_LIMIT_EXCEEDED = (
        429,
        "Too many requests at once",
        "Wait `Retry-After` seconds and try again.",
    )
    RATE_QUEUE_LIMIT_EXCEEDED = (
        429,
        "The queue is full",
        "Wait `Retry-After` seconds and try again.",
    )
    RATE_REQUEST_LIMIT_EXCEEDED = (
        429,
        "The request rate limit of the API key is exceeded",
        "Wait `Retry-After` seconds and try again.",
    )
    RATE_TOKEN_LIMIT_EXCEEDED = (
        429,
        "The token rate limit of the API key is exceeded",
        "Wait `Retry-After` seconds and try again.",
    )
    HEADERS_TOO_LARGE = (
        431,
        "The request has too many or too large headers",
        "Send fewer and shorter headers.",
        "INPUT_HEADERS_TOO_LARGE",
    )
    INTERNAL_ERROR = (
        500,
        "Internal error, or the model cannot encode one of the texts",
        "Leave out the text that the message names. Other texts of the batch are not affected.",
    )
    SERVICE_ENGINE_CRASHED = (
        503,
        "The engine crashed while it encoded the texts, and is restarting",
        "Wait `Retry-After` seconds and try again.",
    )
    SERVICE_OUT_OF_MEMORY = (
        503,
        "The engine has too little memory for one of the texts",
        "Shorten the text that the message names, or try again later.",
    )
    SERVICE_TOO_MANY_CONNECTIONS = (
        503,
        "The server has too many open connections",
        "Wait `Retry-After` seconds and try again. Use one connection for many requests.",
    )
    SERVICE_UNAVAILABLE = (
        503,
        "No engine is running, or the server is shutting down",
        "Wait `Retry-After` seconds and try again.",
    )
    SERVICE_TIMEOUT = (
        504,
        "The request took longer than `--request-seconds`",
        "Send fewer texts per request.",
    )
    STORAGE_UNAVAILABLE = (
        507,
        "The server cannot write to its disk, for example because the disk is full",
        "Ask the operator of the server to make room, and try again.",
    )

    def __init__(self, status: int, meaning: str, remedy: str, code: str | None = None) -> None:
        """`code` is the code on the wire where it differs from the member's name."""
        self.status = status
        self.meaning = meaning
        self.remedy = remedy
        self.code = code or self.name


OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""OpenAI's error types; other 4xx are "invalid_request_error" and 5xx are "server_error"."""


class ApiError(Exception):
    """An error that is the answer to a request."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        errors: list[dict[str, Any]] | None = None,
    ) -> None:
        """`param` is the field with the error; `errors` lists all errors that validation found."""
        super().__init__(message)
        self.status = code.status
        self.code = code.code
        self.message = message
        self.param = param
        self.headers = headers or {}
        self.errors = errors

    @property
    def openai_type(self) -> str:
        """OpenAI's name for this kind of error."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return OPENAI_TYPES.get(self.status, default)


class FieldError(BaseModel):
    """One error in a request."""

    field: str
    message: str
    type: str
    input: Any = None


class AnyError(BaseModel):
    """The fields that every error body has."""

    detail: str
    code: str
    request_id: str
    errors: list[FieldError] | None = None


class OpenAIError(BaseModel):
    """The part of an error that OpenAI's clients read."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(AnyError):
    """An error for Jina's clients, which read `detail`, and OpenAI's, which read `error`."""

    error: OpenAIError


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """The form in which the clients of a dialect read an error."""

    schema: type[AnyError]
    """Schema of the body, for the OpenAPI document."""

    extra_fields: Callable[[ApiError, str], dict[str, Any]]
    """Returns the fields that the dialect has beside those of `AnyError`.

    The arguments are the error and the id of the request.
    """

    def body(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """The JSON body of an error."""
        body: dict[str, Any] = {
            "detail": error.message,
            "code": error.code,
            "request_id": request_id,
            **self.extra_fields(error, request_id),
        }
        if error.errors is not None:
            body["errors"] = error.errors
        return body


def _openai_fields(error: ApiError, request_id: str) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.openai_type,
            "param": error.param,
            "code": error.code,
        }
    }


DEFAULT_ERROR_FORM = ErrorForm(ErrorResponse, _openai_fields)
"""One form for two families of clients: Jina's and OpenAI's."""


class CohereErrorResponse(AnyError):
    """An error as Cohere's clients read it."""

    message: str
    id: str


COHERE_ERROR_FORM = ErrorForm(
    CohereErrorResponse,
    lambda error, request_id: {"message": error.message, "id": request_id},
)
"""The form of the routes that only Cohere's clients use."""


def invalid_input(message: str, param: str | None = "input") -> ApiError:
    """400: the request has the right form, but one of its values is invalid or unsupported."""
    return ApiError(ErrorCode.INPUT_INVALID, message, param=param)


def queue_full(seconds: float) -> ApiError:
    """429: the queue is full; it is expected to have room again in `seconds`."""
    wait = max(1, min(60, round(seconds)))
    return ApiError(
        ErrorCode.RATE_QUEUE_LIMIT_EXCEEDED,
        f"the server's queue is full; try again in {wait} s",
        headers={"Retry-After": str(wait)},
    )


def unavailable(message: str) -> ApiError:
    """503: the server cannot answer at the moment; the request is not at fault."""
    return ApiError(ErrorCode.SERVICE_UNAVAILABLE, message, headers={"Retry-After": "1"})


def engine_crashed() -> ApiError:
    """503: an engine died while it encoded the request, which may or may not be the reason."""
    return ApiError(
        ErrorCode.SERVICE_ENGINE_CRASHED,
        "the engine crashed and is restarting; try again",
        headers={"Retry-After": "1"},
    )


def out_of_memory(position: int) -> ApiError:
    """503: the engine has run out of memory on one text alone."""
    return ApiError(
        ErrorCode.SERVICE_OUT_OF_MEMORY,
        f"there is too little memory for the text input[{position}]; shorten it",
        param=f"input[{position}]",
        headers={"Retry-After": "1"},
    )


def not_finite(position: int) -> ApiError:
    """500: the model returned NaN or infinite numbers for one text."""
    return ApiError(
        ErrorCode.INTERNAL_ERROR,
        f"the model returned NaN or infinite numbers for input[{position}]; leave that text out",
        param=f"input[{position}]",
    )


def describe_statuses() -> dict[int, str]:
    """The description of every error status: the codes that it may have, with their meanings."""
    codes: dict[int, list[ErrorCode]] = {}
    for code in ErrorCode:
        codes.setdefault(code.status, []).append(code)
    return {
        status: "; ".join(f"{code.code}: {code.meaning}" for code in members)
        for status, members in codes.items()
    }


def error_table() -> str:
    """The Markdown table of all error codes, for docs/serving.md."""
    rows = [
        f"| {code.status} | `{code.code}` | {code.meaning} | {code.remedy} |" for code in ErrorCode
    ]
    return "\n".join(["| status | code | meaning | remedy |", "|---|---|---|---|", *rows])
