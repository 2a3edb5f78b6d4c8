"""Leases by the server's clock: whoever doesn't renew one in time loses it."""

from __future__ import annotations

from dataclasses import dataclass

from credit_mongo.storage.codecs import Raw

__all__ = ["ServerLease"]


@dataclass(frozen=True, slots=True)
class ServerLease:
    """A field of a document that says until when its holder is alive."""

    field: str
    seconds: float

    @property
    def renewed(self) -> Raw:
        """The field's new value, for an update that is a pipeline."""
        return {self.field: {"$add": ["$$NOW", int(self.seconds * 1000)]}}

    @property
    def is_over(self) -> Raw:
        """The condition that a document has the field, and that its moment is past."""
        # To $lt, a missing field is before any date.
        return {
            self.field: {"$exists": True},
            "$expr": {"$lt": [f"${self.field}", "$$NOW"]},
        }
