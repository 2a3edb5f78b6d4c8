"""The ledger behind a command: its configuration, amounts as they are shown, periods.

Amounts are whole numbers of the smallest unit, as everywhere in the library, on the command line
and in JSON. Lines and tables for people have the same in credits beside them if the configuration
has decimal places: ``1350 (13.50)``.
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
from credit_mongo.maintenance.export.exporting import parse_moment
from credit_mongo.printing import moment_to_milliseconds, moment_to_seconds

__all__ = [
    "Cursor",
    "Limit",
    "PeriodEnd",
    "PeriodStart",
    "ShowMetadata",
    "moment_of",
    "plain",
    "shown",
    "shown_moment",
    "whole_number",
    "with_ledger",
]

_T = TypeVar("_T")

Limit = Annotated[str, typer.Option("--limit", metavar="N", help="How many at most, up to 1000.")]
Cursor = Annotated[
    str | None,
    typer.Option(
        "--cursor", metavar="CURSOR", show_default=False, help="Go on where that page ended."
    ),
]
PeriodStart = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="DATE", show_default=False, help="From this date or moment, UTC."
    ),
]
PeriodEnd = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="DATE", show_default=False, help="Up to, but not including, this one."
    ),
]
ShowMetadata = Annotated[
    bool, typer.Option("--metadata", help="Show metadata as well; it may be personal.")
]


def with_ledger(
    where: Connecting,
    config: CreditConfig,
    work: Callable[[CreditLedger], Awaitable[_T]],
) -> _T:
    """Do the work with a ledger, and see to it that nothing of it is left open."""

    async def run(database: Database) -> _T:
        async with CreditLedger(database, config) as ledger:
            return await work(ledger)

    return where.run_on_ledger(config, run)


# What is given


def whole_number(name: str, text: str) -> int:
    """A whole number as it is written, without sign, point or exponent."""
    # Python would read 1_000, and digits of any script; and take long for very many of them.
    if text.isascii() and text.isdigit() and len(text) <= len(str(2**64)):
        return int(text)
    raise typer.BadParameter(f"{name} must be a whole number")


def moment_of(name: str, text: str | None, zone: tzinfo = timezone.utc) -> datetime | None:
    """A date or moment, in ``zone`` unless it says otherwise. Raises InvalidRequestError."""
    return None if text is None else parse_moment(name, text, zone)


# What is shown


def shown(amount: object, config: CreditConfig) -> str:
    """An amount for people. What is no whole number is shown as it is."""
    if config.decimal_places and isinstance(amount, int) and not isinstance(amount, bool):
        return f"{amount} ({in_credits(amount, config.decimal_places)})"
    return "-" if amount is None else str(amount)


def shown_moment(moment: object) -> str | None:
    """To the second, in UTC: 2026-01-31T12:00:00Z."""
    return moment_to_seconds(moment) if isinstance(moment, datetime) else None


def plain(value: Any) -> Any:
    """What BSON knows and JSON does not, as text; mappings, lists and numbers as they are."""
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
