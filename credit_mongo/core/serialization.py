"""Metadata as JSON: how pydantic and FastAPI write the metadata of a result."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeAlias

from pydantic import PlainSerializer

__all__ = ["Metadata", "to_json_value"]


def to_json_value(value: Any) -> Any:  # noqa: PLR0911 - one return for each kind of value
    """Convert a BSON value to a JSON value.

    Dates become ISO 8601 strings. Bytes become text if they are UTF-8, otherwise base64. Infinities
    and NaN become null. All other types that JSON lacks (ObjectId, UUID, Decimal128) become their
    ``str``.
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
"""The caller's own facts about an operation, as the database returns them."""
