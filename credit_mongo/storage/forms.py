"""The forms in which the library stores a ledger. Each has a number, and the name of its migration.

These migrations ship with the library, and ``ensure_indexes`` applies them. A ledger's settings
store the number of the last one that was applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

__all__ = ["FORM", "LOWEST_WRITER", "STORED_FORMS", "StoredForm", "missing_forms"]


class StoredForm(NamedTuple):
    """A change of the stored form."""

    number: int
    name: str
    purpose: str


STORED_FORMS: Final = (
    StoredForm(1, "ledger-settings", "the ledger's settings are stored beside it"),
    StoredForm(2, "lots-and-holds", "accounts can have lots, holds and an overdraft"),
)
"""All forms, the oldest first."""

FORM: Final = STORED_FORMS[-1].number
"""The version of the stored form that this library writes."""
LOWEST_WRITER: Final = 2
"""The lowest form that a library must know to use a ledger that this one has set up."""


def missing_forms(settings: Mapping[str, Any] | None) -> tuple[StoredForm, ...]:
    """Return the migrations that a ledger still lacks, by its stored settings (None: it has none).

    A newer version of the library may have applied more than this one knows. Then none is missing.
    """
    version = None if settings is None else settings.get("version")
    if isinstance(version, bool) or not isinstance(version, int | float):
        version = 0
    return tuple(form for form in STORED_FORMS if form.number > version)
