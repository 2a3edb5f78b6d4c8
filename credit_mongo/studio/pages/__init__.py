"""The pages, each in a module of its own. ``PAGES`` lists them in the order of the menu."""

from __future__ import annotations

from typing import Final

from credit_mongo.studio.pages import (
    archives,
    audit_log,
    holds,
    overview,
    refused,
    settings,
    transaction,
    user,
    users,
    verification,
)
from credit_mongo.studio.visits import Page

__all__ = ["PAGES"]

PAGES: Final[tuple[Page, ...]] = (
    *overview.PAGES,
    *users.PAGES,
    *user.PAGES,
    *transaction.PAGES,
    *refused.PAGES,
    *holds.PAGES,
    *audit_log.PAGES,
    *archives.PAGES,
    *verification.PAGES,
    *settings.PAGES,
)
