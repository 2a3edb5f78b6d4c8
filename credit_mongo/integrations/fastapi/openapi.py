"""The OpenAPI document of an application says what its routes that charge need, and may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI

from credit_mongo.integrations.fastapi.header import NAME, required_idempotency_key
from credit_mongo.integrations.fastapi.routes import CHARGES, dependencies_of, routes_of

__all__ = ["describe_problems"]

_SCHEMA: Final = "CreditProblem"
_REFERENCE: Final = {"schema": {"$ref": f"#/components/schemas/{_SCHEMA}"}}
_PROBLEM: Final[Mapping[str, Any]] = {
    "title": _SCHEMA,
    "description": "RFC 9457 problem details. The error's own facts stand beside these members.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "For programs; it does not change."},
    },
    "required": ["type", "title", "status", "detail", "code"],
    "additionalProperties": True,
}


def describe_problems(app: FastAPI, problems: Mapping[int, str], media_type: str) -> None:
    """Add to the document what routes that charge answer besides their own answers.

    ``problems`` says by status what may be wrong. What a route says itself about a status stays.
    """
    build = app.openapi

    def openapi() -> dict[str, Any]:
        schema = build()
        for route in routes_of(app):
            dependencies = dependencies_of(route)
            for method in getattr(route, "methods", None) or ():
                path = schema.get("paths", {}).get(route.path_format, {})
                operation = path.get(method.lower())
                if operation is None:
                    continue
                if required_idempotency_key in dependencies:
                    _require_key(operation)
                if CHARGES.intersection(dependencies):
                    _add_problems(operation, problems, media_type)
                    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
                    schemas.setdefault(_SCHEMA, _PROBLEM)
        return schema

    _replace_method(app, openapi)


def _replace_method(app: FastAPI, openapi: Callable[[], dict[str, Any]]) -> None:
    # FastAPI's own way to extend the document.
    app.openapi = openapi  # type: ignore[method-assign]


def _require_key(operation: dict[str, Any]) -> None:
    # FastAPI itself must take it for optional: its absence is our own problem, with its own code.
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "header" and parameter["name"].lower() == NAME.lower():
            parameter["required"] = True
            parameter["schema"] = {"type": "string", "title": NAME}


def _add_problems(operation: dict[str, Any], problems: Mapping[int, str], media_type: str) -> None:
    responses = operation.setdefault("responses", {})
    for status, text in problems.items():
        phrase = next((each.phrase for each in HTTPStatus if each == status), "Error")
        response = responses.setdefault(str(status), {"description": phrase})
        if media_type not in response.setdefault("content", {}):
            response["content"][media_type] = _REFERENCE
            response["description"] = f"{response['description']}: {text}"
