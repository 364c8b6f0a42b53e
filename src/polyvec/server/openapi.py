"""The OpenAPI document, generated from the list of endpoints and the list of error codes."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from polyvec.server.errors import describe_statuses
from polyvec.server.service import Endpoint

PROBES = ("/ready", "/health", "/ping")
"""Paths whose 503 has the form of their 200, and not that of an error."""


def describe_api(
    endpoints: Sequence[Endpoint], choices: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The document. `choices` are the values of the fields that depend on the models served."""
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        error_content = _content(_reference(endpoint.error_form.schema, schemas))
        errors = {
            str(status): {"description": description, **error_content}
            for status, description in sorted(describe_statuses().items())
        }
        operation: dict[str, Any] = {
            "summary": endpoint.summary,
            "operationId": _name_operation(endpoint, endpoints),
            "responses": {"200": {"description": "Success"}, **errors},
            "security": [{}, {"key": []}],
        }
        if endpoint.writes is not None:
            operation["responses"]["200"] |= _content(_reference(endpoint.writes, schemas))
        if endpoint.path in PROBES:
            operation["responses"]["503"] = {"description": "Not ready"}
        if endpoint.reads is not None:
            schema = _reference(endpoint.reads, schemas)
            operation["requestBody"] = {"required": True, **_content(schema)}
        path = re.sub(r":\w+}", "}", endpoint.path)
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ] + [
            {"name": name, "in": "query", "schema": schema}
            for name, schema in endpoint.query.items()
        ]
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    for schema in schemas.values():
        for name, values in choices.items():
            _add_values(schema.get("properties", {}).get(name, {}), values)
    return {
        "openapi": "3.1.0",
        "info": {"title": "polyvec", "version": version("polyvec")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _name_operation(endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> str:
    """A unique name. If several routes have the same handler, the path is a part of the name."""
    name = f"{endpoint.method.lower()}_{endpoint.answer.__name__}"
    first = next(other for other in endpoints if other.answer is endpoint.answer)
    return name if endpoint is first else name + re.sub(r"\W+", "_", endpoint.path).rstrip("_")


def _reference(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    """A reference to a schema, which is added to `schemas` together with its parts."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _add_values(field: dict[str, Any], values: Sequence[str]) -> None:
    """List the values of a field that is a string, or a string or null."""
    for schema in field.get("anyOf", [field]):
        if schema.get("type") == "string":
            schema["enum"] = list(values)


def _content(schema: dict[str, str]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
