"""Open the database of a deployment, by its address."""

from __future__ import annotations

from datetime import timezone, tzinfo

from credit_mongo.errors import LedgerImportError
from credit_mongo.maintenance.imports.source import Source
from credit_mongo.maintenance.imports.source_urls import parse_url
from credit_mongo.maintenance.imports.tables import Names

__all__ = ["source_of"]


def source_of(address: str, names: Names, zone: tzinfo = timezone.utc) -> Source:
    """Return the source at an address. Nothing is connected yet.

    ``zone`` is that of dates without one.

    Raises LedgerImportError if the address is malformed, or if its driver is not installed.
    """
    url = parse_url(address)
    if url.is_mongodb:
        from credit_mongo.maintenance.imports.mongo_source import MongoSource  # noqa: PLC0415

        return MongoSource(url, names)
    try:
        from credit_mongo.maintenance.imports.sql_source import SqlSource  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise LedgerImportError(str(error)) from None
    return SqlSource(url, names, zone)
