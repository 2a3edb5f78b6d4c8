"""How jobs tell how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["OnProgress", "no_progress"]

OnProgress: TypeAlias = Callable[[int, int | None], None]
"""Called with how many items are done, and about how many there are (None if that is unknown)."""


def no_progress(_done: int, _total: int | None) -> None:
    """Tell nobody."""
