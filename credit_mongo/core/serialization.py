"""Metadata as JSON: what a result's metadata becomes when pydantic or FastAPI writes it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeAlias

from pydantic import PlainSerializer

__all__ = ["Metadata", "to_json_value"]


def to_json_value(value: Any) -> Any:  # noqa: PLR0911 - one for each kind of value
    """A value that BSON can hold, as JSON can hold it.

    Dates become ISO 8601. Bytes become text where they are UTF-8, and base64 otherwise. Numbers
    that JSON lacks (infinities, NaN) become null. Everything else that JSON lacks (an ObjectId, a
    UUID, a Decimal128) becomes its ``str``.
    """
    if isinstance(value, Mapping):
        return {str(name): to_json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value)


Metadata: TypeAlias = Annotated[
    Mapping[str, Any],
    PlainSerializer(to_json_value, return_type=dict[str, Any], when_used="json"),
]
"""The caller's own facts about an operation, as BSON gives them back."""
