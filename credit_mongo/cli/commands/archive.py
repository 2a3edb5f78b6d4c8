"""``credit-mongo archive``: move old transactions and audit logs to collections or files."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.maintenance.archive.archiving import Archive
from credit_mongo.maintenance.archive.archiving import archive as move
from credit_mongo.maintenance.archive.files import FILE_FORMATS
from credit_mongo.printing import moment_to_seconds

_LEFT: Final = ("user", "first transaction that stays")
_MOST_SHOWN: Final = 20
_ONLY: Final = {"transactions": "transactions", "audit-logs": "audit_logs", "holds": "holds"}


@app.command("archive")
def archive(
    *,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE|DATE",
            help="36h, 90d, 12w, 6mo or 2y (calendar months and years), or a date in UTC.",
        ),
    ],
    directory: Annotated[
        Path | None,
        typer.Option(
            "--to",
            "--directory",
            metavar="DIRECTORY",
            show_default=False,
            help="Archive to files in this directory. Default: to collections.",
        ),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="bson|parquet", show_default=False, help="Default: bson, gzipped."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="|".join(_ONLY), show_default=False, help="Default: all.")
    ] = None,
    full_speed: Annotated[
        bool, typer.Option("--full-speed", help="Do not slow down while users are being charged.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Move nothing. Count the rows that are old enough.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Move old transactions and audit logs to archive collections, or to files in a directory.

    Holds that have ended go to their archive collection, never to files.

    It can be killed at any point and run again. Only one run can work at a time. A charge archived
    to collections can still be refunded, and still shows in histories. A charge archived to files
    is gone from the database: it can't be refunded by its id, and erasing a user doesn't reach it.
    Either way the earlier balances stay known, so the books can still be verified.

    The directory must be empty, or hold only this archive's files. Each BSON file has the format of
    mongodump, for mongorestore --gzip. Exit code 1: some users' transactions don't follow from one
    another, and were left alone from there on. To see these, run credit-mongo verify. It leaves out
    those that a repair has settled.
    """
    if directory is None and file_format is not None:
        raise typer.BadParameter("--format needs --to DIRECTORY")
    if file_format is not None and file_format not in FILE_FORMATS:
        raise typer.BadParameter(f"--format must be one of {', '.join(FILE_FORMATS)}")
    if only is not None and only not in _ONLY:
        raise typer.BadParameter(f"--only must be one of {', '.join(_ONLY)}")
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)
    options: dict[str, Any] = {
        "older_than": older_than,
        "directory": directory,
        "file_format": "bson" if file_format is None else file_format,
        "kinds": "all" if only is None else _ONLY[only],
        "hold_late_seconds": settings.holds.late_seconds,
        "full_speed": full_speed,
        "dry_run": dry_run,
        "collections": settings.collections,
        "users": settings.users,
    }

    async def work(found: Database) -> Archive:
        # Millions of rows come and go, none of them in a cycle. Collecting less often saves time.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        with progress("Archiving", "rows") as advance:
            return await move(found, **options, on_progress=advance)

    try:
        done = where.run_on_ledger(settings, work)
    except OSError as error:
        # The error of a full disk doesn't name the directory.
        if directory is not None and error.errno and not error.filename:
            error.filename = str(directory)
        raise
    if as_json:
        show_facts({"database": where.database, **done.to_dict()})
    else:
        _show(done, where.database)
    return FOUND if done.users_broken else DONE


def _show(done: Archive, database: str) -> None:
    show_rows(_LEFT, done.left[:_MOST_SHOWN])
    if done.users_left:
        show(f"{database}: {done.users_left} users were left alone from the transactions shown on")
    what = f"{done.transactions} transactions, {done.audit_logs} audit logs and {done.holds} holds"
    before = f"from before {moment_to_seconds(done.cut_off)}"
    if done.dry_run:
        show(f"{database}: {what} are {before} (dry run: nothing was moved)")
        return
    show(f"{database}: {what} {before} archived")
    for name in done.files:
        show(name)
