"""BSON types in the answers of routes that declare no return type.

Where a route declares a return type, pydantic serializes the result and knows the BSON types.
Where it does not, FastAPI looks up each value's type in its own table, which lacks them. Metadata
can hold all of them. FastAPI's table has an entry for bytes, but it fails on bytes that are not
UTF-8. Our entry writes UTF-8 the same way and takes other bytes too.
"""

from __future__ import annotations

from bson import Binary, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from fastapi.encoders import ENCODERS_BY_TYPE

from credit_mongo.core.serialization import to_json_value

__all__ = ["teach_fastapi_bson"]


def teach_fastapi_bson() -> None:
    """Add the types to FastAPI's table, except those that the application has added itself."""
    for kind in (Binary, DatetimeMS, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp):
        ENCODERS_BY_TYPE.setdefault(kind, to_json_value)
    ENCODERS_BY_TYPE[bytes] = to_json_value
