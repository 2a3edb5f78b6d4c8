"""Describe charging routes in OpenAPI: the key they need and the problems they may answer."""

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
    "description": "RFC 9457 problem details. Each error adds members of its own.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "For programs. It never changes."},
    },
    "required": ["type", "title", "status", "detail", "code"],
    "additionalProperties": True,
}


def describe_problems(app: FastAPI, problems: Mapping[int, str], media_type: str) -> None:
    """Add the problems that charging routes may answer to the application's OpenAPI document.

    ``problems`` maps a status to its description. A route's own description of a status stays.
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
    # The way that FastAPI documents for extending it.
    app.openapi = openapi  # type: ignore[method-assign]


def _require_key(operation: dict[str, Any]) -> None:
    # FastAPI must see it as optional, because we answer a missing key with our own problem.
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
