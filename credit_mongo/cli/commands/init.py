"""``credit-mongo init``: create the ledger's collections, indexes and validator."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.output import AsJson, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.maintenance.indexes import IndexChange, IndexReport, ensure_indexes
from credit_mongo.maintenance.migrations.development import mark_for_development
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.settings import stored_settings

_COLUMNS = ("state", "kind", "what")


@app.command("init")
def init(
    *,
    uri: Uri = None,
    database: DatabaseName = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing. Show what would be created.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    no_validators: Annotated[
        bool, typer.Option("--no-validators", help="Don't set a validator.")
    ] = False,
    development: Annotated[
        bool,
        typer.Option(
            "--development", help="Mark a new database, so that migrate reset may empty it."
        ),
    ] = False,
    timeout: Timeout = 10.0,
) -> int:
    """Create the ledger's missing collections, indexes and validator.

    With --config, this also stores the ledger's settings. Other commands then find the users by
    them, and applications with other settings are refused. Run it as often as you like. Exit code
    1: something of the application's is in the way. It's shown with its remedy. Building an index
    may take longer than the timeout.
    """
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)

    async def work(found: Database) -> tuple[IndexReport, bool]:
        if development and not dry_run:
            ledger = LedgerDatabase.of(found, settings.collections, settings.users)
            await mark_for_development(ledger)
        report = await ensure_indexes(
            found,
            settings.collections,
            settings.users,
            # Unknown without --config, and a guess must not be stored.
            decimal_places=None if config is None else settings.decimal_places,
            validators=not no_validators,
            dry_run=dry_run,
        )
        return report, config is None and not await stored_settings(LedgerDatabase.of(found))

    report, is_unsettled = where.run(work)
    if as_json:
        show_facts({"database": where.database, "dry_run": dry_run, **report.to_dict()})
    else:
        _show(report, where.database, dry_run=dry_run)
        if is_unsettled:
            show("The ledger's settings are not stored. Give --config to store them.")
    return FOUND if report.conflicts else DONE


def _show(report: IndexReport, database: str, *, dry_run: bool) -> None:
    show_rows(_COLUMNS, [(change.state, change.kind, _words(change)) for change in report.changes])
    # A table would break the commands into lines.
    for change in report.conflicts:
        show(f"remedy: {change.remedy}")
    for change in report.kept:
        if change.remedy:
            show(f"no longer needed: {change.remedy}")
    counts = (
        f"{len(report.created)} created, {len(report.kept)} kept, "
        f"{len(report.changed)} changed, {len(report.conflicts)} in conflict"
    )
    show(f"{database}: {counts}{' (dry run: nothing was written)' if dry_run else ''}")
    if report.conflicts:
        show("Resolve the conflicts with these remedies in mongosh, and run the command again.")


def _words(change: IndexChange) -> str:
    name = f".{change.name}" if change.name else ""
    reason = f": {change.reason}" if change.reason else ""
    return f"{change.collection}{name}{reason}"
