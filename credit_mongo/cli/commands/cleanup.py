"""``credit-mongo cleanup``: remove expired idempotency records and audit rows of old refusals."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.maintenance.cleanup import GRACE_SECONDS, Cleanup, clean_up
from credit_mongo.printing import moment_to_seconds

_DAY_SECONDS = 24 * 3600


@app.command("cleanup")
def cleanup(
    *,
    grace: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Keep records that expired less than this long ago."),
    ] = GRACE_SECONDS,
    refusals_older_than: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            help="Also remove, for good, audit rows of attempts refused longer ago.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Remove nothing. Count what would be removed.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Remove expired idempotency records and, if asked to, audit rows of old refusals.

    If the TTL index is on, it removes expired records anyway. This command can be interrupted and
    run again, and can run while the application does.
    """
    days = refusals_older_than
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config, reads_users=False)

    async def work(found: Database) -> Cleanup:
        with progress("Removing", "documents") as advance:
            return await clean_up(
                found,
                collections=settings.collections,
                grace_seconds=grace,
                refusals_older_than_seconds=None if days is None else days * _DAY_SECONDS,
                dry_run=dry_run,
                on_progress=advance,
            )

    done = where.run_on_ledger(settings, work)
    if as_json:
        show_facts({"database": where.database, **done.to_dict()})
    else:
        what = f"{done.removed} records that expired before {moment_to_seconds(done.before)}"
        outcome = "would be removed (dry run: nothing was written)" if dry_run else "removed"
        show(f"{where.database}: {what} {outcome}")
        if (before := done.refusals_before) is not None:
            what = f"{done.refusals_removed} audit rows of refusals before"
            show(f"{where.database}: {what} {moment_to_seconds(before)} {outcome}")
    return DONE
