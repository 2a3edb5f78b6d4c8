"""Commands that change an account. Repeating one with the same idempotency key is safe."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, NamedTuple, TypeAlias
from uuid import uuid4

import typer

from credit_mongo.cli.connecting import Connecting, Database
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.ledgers import moment_of, plain, shown, shown_moment
from credit_mongo.cli.output import show, show_facts
from credit_mongo.config import CreditConfig
from credit_mongo.core.operations.charge import ChargeResult
from credit_mongo.core.operations.grant import GrantResult
from credit_mongo.core.operations.hold_results import Hold
from credit_mongo.core.operations.refund import RefundResult
from credit_mongo.core.operations.revoke import RevokeResult
from credit_mongo.core.operations.set_overdraft import OverdraftResult
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.core.results import User
from credit_mongo.core.values import KEEP, Keep
from credit_mongo.errors import CommitOutcomeUnknownError
from credit_mongo.ledger import CreditLedger
from credit_mongo.ledger.previews import PreviewLedger, preview
from credit_mongo.printing import printable

__all__ = [
    "Action",
    "DryRun",
    "ExpiresAt",
    "Invocation",
    "Key",
    "MetadataText",
    "NoExpiry",
    "Operation",
    "expiry_of",
    "metadata_from",
    "perform",
    "variables_from",
]

Action = Annotated[
    str, typer.Option("--action", metavar="NAME", help="What it's for. Stored in the transaction.")
]
Key = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        show_default=False,
        help="With the same key, nothing happens twice. Default: a random key, which is printed.",
    ),
]
MetadataText = Annotated[
    str | None,
    typer.Option(
        "--metadata", metavar="JSON", show_default=False, help="A JSON object to store with it."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Write nothing. Show what it would do, or why it can't.")
]

ExpiresAt = Annotated[
    str | None,
    typer.Option(
        "--expires-at", metavar="DATE", show_default=False, help="When the tier expires, UTC."
    ),
]
NoExpiry = Annotated[bool, typer.Option("--no-expiry", help="The tier never expires.")]

_Moved: TypeAlias = ChargeResult | RefundResult | GrantResult | RevokeResult
_Result: TypeAlias = _Moved | TierChangeResult | OverdraftResult | Hold | User
Operation: TypeAlias = Callable[[CreditLedger | PreviewLedger, dict[str, Any]], Awaitable[_Result]]
"""Carries out a command on a ledger, with the options that all these commands share."""


class Invocation(NamedTuple):
    """The options of one call of a command."""

    where: Connecting
    settings: CreditConfig
    key: str | None
    metadata: str | None
    dry_run: bool
    as_json: bool


def perform(
    invocation: Invocation, operation: Operation, *, lot_ends: datetime | None = None
) -> int:
    """Carry out an operation, show its result and return the exit code.

    With ``dry_run``, the ledger only says what it would do now. ``lot_ends`` is the end of
    the credits that a grant gives.
    """
    options: dict[str, Any] = {"metadata": metadata_from(invocation.metadata)}
    if invocation.settings.idempotency.enabled and invocation.key is None:
        options["idempotency_key"] = f"credit-mongo-{uuid4()}"
    elif invocation.settings.idempotency.enabled:
        options["idempotency_key"] = invocation.key
    elif invocation.key is not None:
        raise typer.BadParameter("--idempotency-key: keys are disabled in the configuration")
    key = options.get("idempotency_key")
    # Print the key before sending, so that the operation can be repeated whatever happens.
    announced = (
        invocation.key is None
        and key is not None
        and not (invocation.dry_run or invocation.as_json)
    )

    async def work(database: Database) -> _Result:
        async with CreditLedger(database, invocation.settings) as ledger:
            if invocation.dry_run:
                return (await preview(ledger, lambda it: operation(it, options))).result
            if announced:
                show(f"idempotency key: {key}")
                sys.stdout.flush()
            return await operation(ledger, options)

    try:
        result = invocation.where.run_on_ledger(invocation.settings, work)
    except CommitOutcomeUnknownError:
        raise CommitOutcomeUnknownError(
            f"run the command again with --idempotency-key {key}, which settles it"
            if key
            else "look into credit-mongo history before running the command again"
        ) from None
    except KeyboardInterrupt:
        if key is not None and not invocation.dry_run:
            print(f"to complete it: --idempotency-key {printable(key)}", file=sys.stderr)
        raise
    _show(invocation, result, key, lot_ends)
    return DONE


def _show(
    invocation: Invocation, result: _Result, key: str | None, lot_ends: datetime | None
) -> None:
    if invocation.as_json:
        facts = {name: plain(value) for name, value in asdict(result).items() if name != "metadata"}
        facts |= {} if invocation.dry_run else {"idempotency_key": key}
        show_facts({"database": invocation.where.database, "dry_run": invocation.dry_run, **facts})
        return
    done = _words(result, invocation.settings, lot_ends)
    show(f"{result.user_id}: {'would be ' if invocation.dry_run else ''}{done}")
    name = _name(result)
    if result.replayed:
        name = f"{name}, " if name else name
        show(f"{name}done before: this is the result of the key's first use")
    elif invocation.dry_run:
        show("dry run: nothing was written")
    elif name:
        show(name)


_VERBS: Final[Mapping[type[Any], str]] = {
    ChargeResult: "charged",
    RefundResult: "refunded",
    GrantResult: "granted",
    RevokeResult: "revoked",
}


def _name(result: _Result) -> str:
    """Name what the operation has written, to refer to it later."""
    if isinstance(result, User):
        return ""
    if isinstance(result, Hold):
        return f"hold {result.hold_id}"
    name = f"transaction {result.transaction_id}"
    if isinstance(result, GrantResult) and result.lot_id is not None:
        return f"{name}, lot {result.lot_id}"
    return name


def _words(result: _Result, settings: CreditConfig, lot_ends: datetime | None) -> str:
    """Say what was done to the user."""
    if isinstance(result, User):
        tier = result.membership_tier
        membership = "" if tier is None else f", tier {tier}{_until(result.membership_expires_at)}"
        return f"created with {shown(result.credits, settings)}{membership}"
    if isinstance(result, Hold):
        captured = f", {shown(result.captured, settings)} captured" if result.captured else ""
        return (
            f"freed of the hold of {shown(result.amount, settings)} for {result.action}{captured}"
        )
    if isinstance(result, OverdraftResult):
        old, new = shown(result.old_limit, settings), shown(result.new_limit, settings)
        balance = shown(result.balance, settings)
        return f"set to an overdraft of {new}, before {old}, balance {balance}"
    if isinstance(result, TierChangeResult):
        moved = (
            f"renewed in tier {result.new_tier}"
            if result.old_tier == result.new_tier
            else f"moved from {result.old_tier or 'no tier'} to tier {result.new_tier}"
        )
        before, after = result.old_credits, result.new_credits
        moved += _until(result.membership_expires_at)
    else:
        amount = result.cost if isinstance(result, ChargeResult) else result.amount
        moved = f"{_VERBS[type(result)]} {shown(amount, settings)} for {result.action}"
        moved += _until(lot_ends) + _lost(result, settings)
        before, after = result.balance_before, result.balance_after
    return f"{moved}, balance {shown(before, settings)} → {shown(after, settings)}"


def _lost(result: _Moved, settings: CreditConfig) -> str:
    """Say what the operation was to move but couldn't, or what was gone at once."""
    if isinstance(result, RevokeResult) and result.uncollected:
        return f", {shown(result.uncollected, settings)} uncollected"
    if isinstance(result, RefundResult) and result.expired_amount:
        return f", {shown(result.expired_amount, settings)} expired at once"
    return ""


def _until(expires_at: datetime | None) -> str:
    return "" if expires_at is None else f" until {shown_moment(expires_at)}"


def expiry_of(expires_at: str | None, *, never: bool) -> datetime | Keep | None:
    """The expiry from --expires-at and --no-expiry: a moment, None for never, KEEP if not given."""
    if expires_at is not None and never:
        raise typer.BadParameter("--expires-at and --no-expiry can't be combined: give one")
    if never:
        return None
    return KEEP if expires_at is None else moment_of("--expires-at", expires_at)


def metadata_from(text: str | None) -> dict[str, Any] | None:
    """Read a JSON object. Errors don't quote it."""
    if text is None:
        return None
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise typer.BadParameter("--metadata is not JSON") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("--metadata must be a JSON object")
    return found


def _refuse(_name: str) -> None:
    # Python reads NaN and Infinity, which JSON doesn't have.
    raise ValueError


def variables_from(given: list[str]) -> dict[str, Decimal] | None:
    """Read formula variables, each given as NAME=NUMBER, as exact numbers."""
    variables: dict[str, Decimal] = {}
    for text in given:
        name, equals, number = text.partition("=")
        try:
            value = Decimal(number)
        except InvalidOperation:
            value = Decimal("NaN")
        if not (equals and name and value.is_finite()):
            raise typer.BadParameter("--variable must be NAME=NUMBER")
        if name in variables:
            raise typer.BadParameter(f"--variable: {name[:40]} is given twice")
        variables[name] = value
    return variables or None
