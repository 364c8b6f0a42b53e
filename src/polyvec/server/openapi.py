"""The OpenAPI document, from the table of endpoints."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from polyvec.server.app import Endpoint
from polyvec.server.middleware import dialect_of
from polyvec.server.wire import CohereErrorResponse, ErrorResponse, TeiErrorResponse

REFUSALS = {"jina": ErrorResponse, "tei": TeiErrorResponse, "cohere": CohereErrorResponse}

ERRORS = {
    400: "What is asked for cannot be had",
    401: "No API key, or a wrong one",
    404: "There is no such thing",
    405: "The path has other methods",
    408: "The request came too slowly",
    409: "Another change is under way",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "The body is not of the expected form",
    429: "A limit is used up; see Retry-After",
    500: "The server's fault",
    503: "No engine runs, or the server stops; see Retry-After",
    504: "It took too long",
}


def describe_api(
    endpoints: Sequence[Endpoint], choices: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The document. `choices` are the values of fields that depend on the models served."""
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        refused = _content(_refer(REFUSALS[dialect_of(endpoint.path)], schemas))
        errors = {str(code): {"description": text, **refused} for code, text in ERRORS.items()}
        operation: dict[str, Any] = {
            "summary": endpoint.summary,
            "operationId": f"{endpoint.method.lower()}_{endpoint.answer.__name__}",
            "responses": {"200": {"description": "The answer"}, **errors},
            "security": [{}, {"key": []}],
        }
        if endpoint.writes is not None:
            operation["responses"]["200"] |= _content(_refer(endpoint.writes, schemas))
        if endpoint.path in ("/ready", "/health"):
            # A probe's answer has its own form.
            operation["responses"]["503"] = {"description": "Not ready"}
        if endpoint.reads is not None:
            schema = _refer(endpoint.reads, schemas)
            operation["requestBody"] = {"required": True, **_content(schema)}
        path = re.sub(r":\w+}", "}", endpoint.path)
        names = re.findall(r"{(\w+)}", path)
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ] + [{"name": name, "in": "query", "schema": kind} for name, kind in endpoint.query.items()]
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    for schema in schemas.values():
        for name, values in choices.items():
            _narrow(schema.get("properties", {}).get(name, {}), values)
    return {
        "openapi": "3.1.0",
        "info": {"title": "polyvec", "version": version("polyvec")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _refer(kind: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    """A reference to a schema, which is put with its parts into `schemas`."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[kind.__name__] = schema
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _narrow(field: dict[str, Any], values: Sequence[str]) -> None:
    """Name the values of a field that is a text, or a text or null."""
    for kind in field.get("anyOf", [field]):
        if kind.get("type") == "string":
            kind["enum"] = list(values)


def _content(schema: dict[str, str]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
