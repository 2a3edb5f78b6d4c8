"""``credit-mongo verify``: check the books, and repair them with corrections."""

from __future__ import annotations

import gc
from datetime import datetime, timezone
from typing import Annotated, Any

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import (
    Connecting,
    Database,
    DatabaseName,
    Timeout,
    Uri,
    seconds_up_to,
)
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import LONGEST_TTL_SECONDS, CreditConfig
from credit_mongo.maintenance.verification.findings import Finding, Verification
from credit_mongo.maintenance.verification.last_result import keep_result
from credit_mongo.maintenance.verification.repair import Repair, repair
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.database import LedgerDatabase

_FINDINGS = ("user", "finding", "seq", "transaction", "detail")
_CORRECTIONS = ("user", "correction", "amount", "settles", "reason")


@app.command("verify")
def verify_books(
    *,
    user: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this user. May be repeated.")
    ] = None,
    no_audit: Annotated[
        bool, typer.Option("--no-audit", help="Auditing is disabled: expect no audit rows.")
    ] = False,
    key_ttl: Annotated[
        float | None,
        typer.Option(
            parser=seconds_up_to(LONGEST_TTL_SECONDS),
            metavar="SECONDS",
            help="How long keys are remembered, for transactions that don't say so. Default: as "
            "in --config. Without --config: a day, or as the records say.",
        ),
    ] = None,
    do_repair: Annotated[
        bool, typer.Option("--repair", help="Settle findings by adding correcting transactions.")
    ] = False,
    operator: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who repairs. Stored in each correction.")
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why. Stored in each correction.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing. Show what --repair would add.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Find everything that is wrong with the books: balances, history, audit rows and keys.

    Exit code 1: something is wrong, and is shown. With --repair, each affected user gets a
    correcting transaction. Exit code 1 then means that something is still wrong. History is never
    edited.
    """
    _check_repair(do_repair=do_repair, operator=operator, reason=reason, dry_run=dry_run)
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)
    options: dict[str, Any] = {
        "collections": settings.collections,
        "users": settings.users,
        "user_ids": user or None,
        "audits": not no_audit,
        "key_ttl_seconds": _key_ttl(key_ttl, None if config is None else settings),
        "max_clock_skew_seconds": settings.max_clock_skew_seconds,
    }
    if operator is not None and reason is not None:
        options |= {"operator": operator, "reason": reason, "dry_run": dry_run}

    async def work(found: Database) -> Verification | Repair:
        began_at = datetime.now(timezone.utc)
        with progress("Verifying", "transactions") as advance:
            outcome = await _work(found, {**options, "on_progress": advance}, do_repair=do_repair)
        if isinstance(outcome, Verification) and not user:
            ledger = LedgerDatabase.of(found, settings.collections, settings.users)
            # A role that only reads verifies just as well.
            await keep_result(ledger, outcome, began_at=began_at)
        return outcome

    outcome = where.run_on_ledger(settings, work)
    if as_json:
        show_facts({"database": where.database, **outcome.to_dict()})
    elif isinstance(outcome, Repair):
        _show_repair(outcome, where.database)
    else:
        _show(outcome, where.database)
    left = not outcome.is_complete if isinstance(outcome, Repair) else outcome.findings_total
    return FOUND if left else DONE


def _key_ttl(given: float | None, settings: CreditConfig | None) -> float | None:
    if given is not None or settings is None:
        return given
    return settings.idempotency.ttl_seconds


async def _work(
    database: Database, options: dict[str, Any], *, do_repair: bool
) -> Verification | Repair:
    # Millions of rows come and go, none of them in a cycle. Looking for cycles took a third of the
    # time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    return await (repair if do_repair else verify)(database, **options)


def _check_repair(
    *, do_repair: bool, operator: str | None, reason: str | None, dry_run: bool
) -> None:
    if do_repair and not (operator and reason):
        raise typer.BadParameter("--repair needs --operator NAME and --reason TEXT")
    if not do_repair and (dry_run or operator is not None or reason is not None):
        raise typer.BadParameter("--operator, --reason and --dry-run need --repair")


def _show(verification: Verification, database: str) -> None:
    show_rows(_FINDINGS, [_cells(finding) for finding in verification.findings])
    left_out = verification.findings_total - len(verification.findings)
    if left_out:
        show(f"… and {left_out} more")
    checked = f"{verification.users:,} users, {verification.transactions:,} transactions"
    if not verification.findings_total:
        show(f"{database}: the books are right ({checked} checked)")
        return
    show(
        f"{database}: {verification.findings_total:,} findings of {verification.users_off:,} users "
        f"({checked} checked)"
    )


def _cells(finding: Finding) -> tuple[object, ...]:
    transaction = finding.transaction_id or None
    return finding.user_id, finding.code, finding.seq, transaction, finding.detail


def _show_repair(done: Repair, database: str) -> None:
    _show(done.verification, database)
    rows = [(c.user_id, c.state, c.amount, c.findings, c.reason) for c in done.corrections]
    show_rows(_CORRECTIONS, rows)
    states = [correction.state for correction in done.corrections]
    show(
        f"{database}: {states.count('added')} corrections added, "
        f"{states.count('would-be-added')} would be added, "
        f"{states.count('not-possible')} not possible"
    )
