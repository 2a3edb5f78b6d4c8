"""``credit-mongo erase``: erase a user and all its rows for good."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, NOT_DONE
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.config import CreditConfig
from credit_mongo.core.results import Erasure
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.erase_preview import ErasurePreview, preview_erasure
from credit_mongo.printing import moment_to_milliseconds, printable


@app.command("erase")
def erase(
    *,
    user: Annotated[str, typer.Option(metavar="ID", help="The user.")],
    requested_by: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Who asked for it. Stays in the record. Required unless --dry-run.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Erase nothing. Count what would be erased.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Erase a user's account, transactions, audit logs and idempotency records, archived ones too.

    This can't be undone. If it's interrupted, run it again to complete it. A record stays that says
    how many rows were erased, when, and who asked, without the user's name. Archive files, exports
    and backups are not erased. The role creditEraser allows it. The application's own role doesn't.
    """
    if requested_by is None and not dry_run:
        raise typer.BadParameter("--requested-by NAME is missing: it stays in the record")
    where = Connecting.to(uri, database, timeout)
    if dry_run:
        _preview(where, settings_of(where, config), user, as_json=as_json)
        return DONE
    if not yes and not _is_confirmed(user, where.database):
        return NOT_DONE
    settings = settings_of(where, config)

    async def work(found: Database) -> Erasure:
        with progress("Erasing", "rows") as advance:
            return await erase_user(
                found,
                user,
                requested_by=requested_by,
                collections=settings.collections,
                users=settings.users,
                step_seconds=timeout,
                on_progress=advance,
            )

    erasure = where.run_on_ledger(settings, work)
    if as_json:
        show_facts({"database": where.database, **_facts(erasure)})
    else:
        _show(erasure, where.database)
    return DONE


def _is_confirmed(user: str, database: str) -> bool:
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask for confirmation: give --yes")
    # On one line, whatever the name contains, and on stderr, as stdout may be piped to a program.
    question = f"Erase {user!r} and all its rows in {database!r} for good? [y/N] "
    print(printable(question), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _facts(erasure: Erasure) -> dict[str, Any]:
    return {**asdict(erasure), "erased_at": moment_to_milliseconds(erasure.erased_at)}


def _preview(where: Connecting, settings: CreditConfig, user: str, *, as_json: bool) -> None:
    async def work(found: Database) -> ErasurePreview:
        return await preview_erasure(
            found, user, collections=settings.collections, users=settings.users
        )

    preview = where.run_on_ledger(settings, work)
    if as_json:
        show_facts({"database": where.database, "dry_run": True, **asdict(preview)})
        return
    show(f"{where.database}: would erase {_counts(preview)} (dry run: nothing was written)")
    _show_files(preview)


def _show(erasure: Erasure, database: str) -> None:
    show(f"{database}: erased {_counts(erasure)} (record {erasure.erasure_id})")
    _show_files(erasure)


def _counts(erasure: Erasure | ErasurePreview) -> str:
    return (
        f"{erasure.users} users, {erasure.transactions} transactions, "
        f"{erasure.audit_logs} audit logs, {erasure.idempotency_records} idempotency records, "
        f"{erasure.archived_transactions} archived transactions, "
        f"{erasure.archived_audit_logs} archived audit logs, "
        f"{erasure.paid_requests} paid requests, {erasure.holds} holds"
    )


def _show_files(erasure: Erasure | ErasurePreview) -> None:
    if erasure.transactions_in_files:
        show(
            f"{erasure.transactions_in_files} transactions of the user stay in archive files: "
            "remove them there yourself"
        )
