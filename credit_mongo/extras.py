"""The error for an optional dependency that isn't installed."""

from __future__ import annotations

__all__ = ["missing"]


def missing(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The error to raise for a failed import. It names the extra that installs the module."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "credit_mongo"):
        return error
    remedy = f"{package} is missing: pip install 'credit-mongo[{extra}]'"
    return ModuleNotFoundError(remedy, name=error.name, path=error.path)
