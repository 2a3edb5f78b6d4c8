"""What BSON knows and JSON lacks, in answers that a route returns without a type.

Where a route names its type, pydantic writes the result, and knows how. Where it does not, FastAPI
looks up each value's type in a table of its own, which fails on these. Metadata can hold all of
them. Bytes are in the table already; the entry here writes UTF-8 as that one does, and also takes
bytes that are not UTF-8.
"""

from __future__ import annotations

from bson import Binary, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from fastapi.encoders import ENCODERS_BY_TYPE

from credit_mongo.core.serialization import to_json_value

__all__ = ["teach_fastapi_bson"]


def teach_fastapi_bson() -> None:
    """Add the types to FastAPI's table, but for those that the application has added itself."""
    for kind in (Binary, DatetimeMS, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp):
        ENCODERS_BY_TYPE.setdefault(kind, to_json_value)
    ENCODERS_BY_TYPE[bytes] = to_json_value
