"""How documents are decoded: one form for each kind of work."""

from __future__ import annotations

from datetime import timezone
from typing import Any, Final, TypeAlias

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument

__all__ = ["CODEC_OPTIONS", "FOR_METADATA", "FOR_USERS", "LENIENT", "NAIVE", "UNDECODED", "Raw"]

Raw: TypeAlias = dict[str, Any]

FOR_METADATA: Final[CodecOptions[Raw]] = CodecOptions(
    tz_aware=True, tzinfo=timezone.utc, uuid_representation=UuidRepresentation.STANDARD
)
# A date beyond the years that Python has comes as a DatetimeMS: one in a field that the ledger
# never looks at must not stop it, and one that it needs is told by name.
CODEC_OPTIONS: Final[CodecOptions[Raw]] = FOR_METADATA.with_options(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""What the ledger reads and writes its rows with."""

FOR_USERS: Final[CodecOptions[Raw]] = CODEC_OPTIONS.with_options(tz_aware=False, tzinfo=None)
"""The same for the users of a batch. ``StoredUsers`` adds the time zone to the datetimes that it
needs, in a fifth of the time that the driver takes for it.
"""

LENIENT: Final[CodecOptions[Raw]] = CODEC_OPTIONS.with_options(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
"""The same for documents that may hold anything, such as text that is not UTF-8 or the year 10000.

A date that Python has no form for is read as a ``DatetimeMS``."""

NAIVE: Final[CodecOptions[Raw]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
"""For rows in bulk. Naive datetimes, in UTC, take half the time; written back, they are the same.
"""

UNDECODED: Final[CodecOptions[Any]] = CodecOptions(
    document_class=RawBSONDocument,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)
"""For documents that are copied byte by byte."""
