"""``credit-mongo restore``: restore a ledger from a backup, to any moment that its chain has."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, Any

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.commands.backup import (
    Acknowledged,
    KeyFile,
    NoAudit,
    Place,
    Until,
    note_broken,
    read_acknowledged,
    show_missing,
)
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.maintenance.backup.reconciling import missing_since
from credit_mongo.maintenance.backup.restoring import Restored
from credit_mongo.maintenance.backup.restoring import restore as restore_ledger
from credit_mongo.printing import moment_to_seconds


@app.command("restore")
def restore(
    place: Place,
    *,
    to: Until = None,
    lost_at: Annotated[
        str | None,
        typer.Option(
            metavar="MOMENT",
            show_default=False,
            help="When the database was lost, in UTC, to be told the gap. Default: now.",
        ),
    ] = None,
    encrypt_with: KeyFile = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Drop what is there. Stop the application first."),
    ] = False,
    reconcile: Acknowledged = None,
    no_audit: NoAudit = False,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Restore the ledger into an empty database, with its indexes and settings, and verify it.

    All files are checked before anything is written. Until the restore has ended, no ledger opens
    on the database. If it was killed, run it again: it goes on. Exit code 1: the books were wrong
    when they were backed up, or --reconcile found something missing. To see what is wrong with the
    books, run credit-mongo verify.
    """
    where = Connecting.to(uri, database, timeout)
    acknowledged = None if reconcile is None else read_acknowledged(reconcile)
    options: dict[str, Any] = {
        "to": to,
        "lost_at": lost_at,
        "key_file": encrypt_with,
        "replace": replace,
        "audits": not no_audit,
    }

    async def work(found: Database) -> Restored:
        with progress("Restoring", "documents") as advance:
            return await restore_ledger(found, place, **options, on_progress=advance)

    done = where.run(work)
    note_broken(done.broken)
    missing: list[str] = []
    if acknowledged is not None:
        names, users = done.collections, done.users
        missing = where.run(
            lambda found: missing_since(found, acknowledged, collections=names, users=users)
        )
    if as_json:
        lacks = {} if acknowledged is None else {"missing": missing}
        show_facts({"database": where.database, **done.to_dict(), **lacks})
    else:
        _show(done, where.database, is_loss_known=lost_at is not None)
        if acknowledged is not None:
            show_missing(missing, where.database)
    return FOUND if done.verification.findings_total or missing else DONE


def _show(done: Restored, database: str, *, is_loss_known: bool) -> None:
    checked = done.verification
    show(
        f"{database}: {done.documents} documents and {done.changes} changes restored, "
        f"{checked.findings_total} findings of {checked.users} users"
    )
    # A second that has begun counts: never tell less than was lost.
    gap = timedelta(seconds=math.ceil(done.gap_seconds))
    until = moment_to_seconds(done.lost_at) if is_loss_known else "now"
    show(
        f"{database}: shows the ledger at {moment_to_seconds(done.moment)}. What was acknowledged "
        f"in the {gap} from then until {until} is lost"
    )
