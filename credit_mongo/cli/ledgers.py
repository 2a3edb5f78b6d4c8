"""Run a command's work on a ledger, read its options, and show its values.

On the command line and in JSON, amounts are whole numbers of the smallest unit, as everywhere in
the library. If the configuration has decimal places, lines and tables for people also show credits:
``1350 (13.50)``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone, tzinfo
from typing import Annotated, Any, TypeVar

import typer

from credit_mongo.cli.connecting import Connecting, Database
from credit_mongo.config import CreditConfig
from credit_mongo.core.pricing import in_credits
from credit_mongo.ledger import CreditLedger
from credit_mongo.maintenance.moments import parse_moment
from credit_mongo.printing import moment_to_milliseconds, moment_to_seconds

__all__ = [
    "Cursor",
    "Limit",
    "PeriodEnd",
    "PeriodStart",
    "ShowMetadata",
    "json_text",
    "moment_of",
    "plain",
    "shown",
    "shown_moment",
    "whole_number",
    "with_ledger",
]

_T = TypeVar("_T")

Limit = Annotated[
    str, typer.Option("--limit", metavar="N", help="How many rows to show, up to 1000.")
]
Cursor = Annotated[
    str | None,
    typer.Option(
        "--cursor",
        metavar="CURSOR",
        show_default=False,
        help="Continue after the page that printed this cursor.",
    ),
]
PeriodStart = Annotated[
    str | None,
    typer.Option("--from", metavar="DATE", show_default=False, help="From this date or moment on."),
]
PeriodEnd = Annotated[
    str | None,
    typer.Option("--to", metavar="DATE", show_default=False, help="Before this date or moment."),
]
ShowMetadata = Annotated[
    bool, typer.Option("--metadata", help="Also show metadata, which may be personal.")
]


def with_ledger(
    where: Connecting,
    config: CreditConfig,
    work: Callable[[CreditLedger], Awaitable[_T]],
) -> _T:
    """Do the work with a ledger, and close the ledger."""

    async def run(database: Database) -> _T:
        async with CreditLedger(database, config) as ledger:
            return await work(ledger)

    return where.run_on_ledger(config, run)


# Read options


def whole_number(name: str, text: str) -> int:
    """A whole number in plain digits, without sign, point or exponent."""
    # int() alone would accept 1_000 and the digits of any script, and be slow for very many digits.
    if text.isascii() and text.isdigit() and len(text) <= len(str(2**64)):
        return int(text)
    raise typer.BadParameter(f"{name} must be a whole number")


def moment_of(name: str, text: str | None, zone: tzinfo = timezone.utc) -> datetime | None:
    """A date or moment, in ``zone`` unless it names its own. Raises InvalidRequestError."""
    return None if text is None else parse_moment(name, text, zone)


# Show values


def shown(amount: object, config: CreditConfig) -> str:
    """An amount for people. A value that is not a whole number is shown as it is."""
    if config.decimal_places and isinstance(amount, int) and not isinstance(amount, bool):
        return f"{amount} ({in_credits(amount, config.decimal_places)})"
    return "-" if amount is None else str(amount)


def shown_moment(moment: object) -> str | None:
    """A moment in UTC, to the second: 2026-01-31T12:00:00Z. None if it isn't a moment."""
    return moment_to_seconds(moment) if isinstance(moment, datetime) else None


def json_text(value: object) -> str | None:
    """A value as JSON on one line. None if there is none."""
    return None if value is None else json.dumps(plain(value), ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value for JSON. BSON types that JSON lacks become text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return moment_to_milliseconds(value)
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value, allow_nan=False)
        return value
    return str(value)
