"""Extras of the installation: what to say where one is needed and is not there."""

from __future__ import annotations

__all__ = ["missing"]


def missing(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The error of an import that failed, with the extra that brings the module."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "credit_mongo"):
        return error
    remedy = f"{package} is missing: pip install 'credit-mongo[{extra}]'"
    return ModuleNotFoundError(remedy, name=error.name, path=error.path)
