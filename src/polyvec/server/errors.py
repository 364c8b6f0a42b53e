"""Errors as clients know them: one body that satisfies both the Jina and the OpenAI families.

Clients of the first kind read `detail` (and `code`), of the second `error.message`.
"""

from typing import Any

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""OpenAI's error types; other 4xx are "invalid_request_error" and 5xx "server_error"."""


class ApiError(Exception):
    """A request that gets an error for an answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        errors: list[dict[str, Any]] | None = None,
    ) -> None:
        """`param` is the field at fault; `errors` lists every fault that validation found."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}
        self.errors = errors


def error_body(error: ApiError, request_id: str, dialect: str) -> dict[str, Any]:
    """The JSON body of an error. TEI's clients want a string where OpenAI's want an object."""
    kind = KINDS.get(error.status)
    kind = kind or ("server_error" if error.status >= 500 else "invalid_request_error")
    body: dict[str, Any] = {
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
    }
    if dialect == "tei":
        body |= {"error": error.message, "error_type": kind}
    elif dialect == "cohere":
        body |= {"message": error.message, "id": request_id}
    else:
        body["error"] = {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": error.code,
        }
    if error.errors is not None:
        body["errors"] = error.errors
    return body


def bad_input(message: str, param: str | None = "input") -> ApiError:
    """400: the request is well-formed, and what it asks for cannot be had."""
    return ApiError(400, "INPUT_INVALID", message, param=param)


def busy(seconds: float) -> ApiError:
    """429: the queue is full; it should have room again in some seconds."""
    wait = max(1, min(60, round(seconds)))
    return ApiError(
        429,
        "RATE_QUEUE_LIMIT_EXCEEDED",
        f"the server's queue is full; try again in {wait} s",
        headers={"Retry-After": str(wait)},
    )


def unavailable(message: str) -> ApiError:
    """503: no fault of the request's."""
    return ApiError(503, "SERVICE_UNAVAILABLE", message, headers={"Retry-After": "1"})
