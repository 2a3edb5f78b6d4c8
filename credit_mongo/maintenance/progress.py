"""How jobs tell how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from credit_mongo.errors import InvalidRequestError

__all__ = ["OnProgress", "progress_of"]

OnProgress: TypeAlias = Callable[[int, int | None], None]
"""Called with how many items are done, and about how many there are (None if that is unknown)."""


def progress_of(on_progress: OnProgress | None) -> OnProgress:
    """Return the function to call. Raises InvalidRequestError if it can't be called."""
    if on_progress is None:
        return _no_progress
    if not callable(on_progress):
        kind = type(on_progress).__name__
        raise InvalidRequestError("on_progress", f"must be a function, not {kind}")
    return on_progress


def _no_progress(_done: int, _total: int | None) -> None:
    """Tell nobody."""
