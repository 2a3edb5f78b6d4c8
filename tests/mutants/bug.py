"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Bug"]


@dataclass(frozen=True)
class Bug:
    """A bug: in ``file`` of the package, ``was`` becomes ``now``, and one of ``tests`` must fail.

    ``was`` must stand exactly once in its file. A bug whose text is missing is reported, never
    skipped.
    """

    name: str
    file: str
    was: str
    now: str
    tests: tuple[str, ...]
