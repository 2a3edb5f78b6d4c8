"""What the tests of the operations share: prices, a clock, and ways to read and write documents."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from bson import Int64

from credit_mongo import (
    CreditConfig,
)
from tests.integration.promises import Database, Row, rows

START = datetime(2030, 5, 1, 12, 0, 0, 123000, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
NOW = START + SECOND
LATER = START + timedelta(days=30)
METADATA = {"trace": "t-1", "nested": {"list": [1, 2.5, None, True]}}
KEY_LIFETIME = timedelta(seconds=100)


class Clock:
    """A clock that stands still until a test sets it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def prices(**options: Any) -> CreditConfig:
    """Return these tests' prices, with other settings."""
    return CreditConfig(
        costs={
            "post": {"default": 10, "premium": 8},
            "tokens": {"default": "{token} * 0.001 + 10", "premium": "{token} / 1000"},
            "translate": {"default": 3, "premium": "{words} / 100"},
            "image": {"premium": 20, "enterprise": 15},
            "ratio": {"default": "100 / {n}"},
            "rebate": {"default": "{n} - 50"},
        },
        membership={
            "tiers": {"free": 0, "premium": 1, "enterprise": 2},
            "requirements": {"reports": "enterprise"},
            "credits_caps": {"free": 100, "premium": 2000, "enterprise": 10000},
        },
        **{"idempotency": {"ttl_seconds": KEY_LIFETIME.seconds}, **options},
    )


async def one(database: Database, collection: str, **query: Any) -> Row:
    """Return the only document with these values."""
    [document] = await rows(database, collection, **query)
    return document


async def insert_unchecked(database: Database, collection: str, *documents: Row) -> None:
    """Insert a document as applications wrote them before there was a validator."""
    await database.command(
        {"insert": collection, "documents": [*documents], "bypassDocumentValidation": True}
    )


def check_types(document: Any) -> None:
    """Check that integers are int64 everywhere, and dates whole milliseconds in UTC."""
    if isinstance(document, dict):
        for value in document.values():
            check_types(value)
    elif isinstance(document, int) and not isinstance(document, bool):
        assert isinstance(document, Int64), document
