"""``credit-mongo restore``: restore a ledger from a backup, to any moment that its chain has."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.commands.backup import KeyFile, NoAudit, Place, Until
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.maintenance.backup.restoring import Restored
from credit_mongo.maintenance.backup.restoring import restore as restore_ledger
from credit_mongo.printing import moment_to_seconds


@app.command("restore")
def restore(
    place: Place,
    *,
    to: Until = None,
    encrypt_with: KeyFile = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Drop what is there. Stop the application first."),
    ] = False,
    no_audit: NoAudit = False,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Restore the ledger into an empty database, with its indexes and settings, and verify it.

    All files are checked before anything is written. Until the restore has ended, no ledger opens
    on the database. If it was killed, run it again: it goes on. Exit code 1: the books were wrong
    when they were backed up. To see how, run credit-mongo verify.
    """
    where = Connecting.to(uri, database, timeout)
    options: dict[str, Any] = {
        "to": to,
        "key_file": encrypt_with,
        "replace": replace,
        "audits": not no_audit,
    }

    async def work(found: Database) -> Restored:
        with progress("Restoring", "documents") as advance:
            return await restore_ledger(found, place, **options, on_progress=advance)

    done = where.run(work)
    if as_json:
        show_facts({"database": where.database, **done.to_dict()})
    else:
        _show(done, where.database)
    return FOUND if done.verification.findings_total else DONE


def _show(done: Restored, database: str) -> None:
    checked = done.verification
    show(
        f"{database}: {done.documents} documents and {done.changes} changes restored, "
        f"{checked.findings_total} findings of {checked.users} users"
    )
    gap = timedelta(seconds=int(done.gap_seconds))
    show(
        f"{database}: shows the ledger at {moment_to_seconds(done.moment)}. What was acknowledged "
        f"in the {gap} since then is lost"
    )
