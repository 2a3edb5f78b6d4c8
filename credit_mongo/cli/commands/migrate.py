"""``credit-mongo migrate …``: the application's migrations, and accounts for its users."""

from __future__ import annotations

import getpass
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, TypeVar

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
from credit_mongo.cli.ledgers import plain, shown_moment
from credit_mongo.cli.output import AsJson, note, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.errors import MigrationError
from credit_mongo.maintenance.indexes import IndexReport, ensure_all
from credit_mongo.maintenance.migrations.development import reset as reset_database
from credit_mongo.maintenance.migrations.files import create_file
from credit_mongo.maintenance.migrations.log import Operator
from credit_mongo.maintenance.migrations.plan import MigrationState
from credit_mongo.maintenance.migrations.runner import MigrationRun, Migrations, Options
from credit_mongo.printing import printable_lines
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.forms import FORM, missing_forms
from credit_mongo.storage.settings import stored_settings

_T = TypeVar("_T")
_LONGEST_WAIT_SECONDS: Final = 24 * 3600
_COLUMNS: Final = ("state", "migration", "at", "by", "seconds")

migrate: Final[typer.Typer] = typer.Typer(
    name="migrate", help="Change the application's data by migrations, once and in order."
)
app.add_typer(migrate, rich_help_panel="Maintenance")

Directory = Annotated[
    Path, typer.Option("--directory", metavar="PATH", help="The directory of the migrations.")
]
By = Annotated[
    str | None,
    typer.Option(
        "--operator",
        metavar="NAME",
        show_default=False,
        help="Who runs it, for the log. Default: the name of the system's user.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        parser=seconds_up_to(_LONGEST_WAIT_SECONDS),
        metavar="SECONDS",
        help="How long to wait for another run to end.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing. Show what would be run.")]
ShowTraceback = Annotated[
    bool,
    typer.Option(
        "--traceback", help="Show where a migration failed, and the error's text, on stderr."
    ),
]
_HERE: Final = Path("migrations")
_DONE: Final = {"apply": "applied", "roll back": "rolled back"}


@migrate.command("status")
def status(
    *,
    directory: Directory = _HERE,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Show each migration's state, and which of the library's own are missing. Writes nothing.

    Exit code 1: something is pending, unfinished, changed or missing.
    """
    where = Connecting.to(uri, database, timeout)
    transactions = settings_of(where, config, reads_users=False).collections.transactions

    async def work(found: Database) -> tuple[tuple[MigrationState, ...], list[str] | None]:
        rows = {row["_id"]: row for row in await stored_settings(LedgerDatabase.of(found))}
        missing = [form.name for form in missing_forms(rows.get(transactions))] if rows else None
        return await _migrations(found, directory, None).states(), missing

    states, missing = where.run(work)
    is_done = not missing and all(each.state in ("applied", "newer") for each in states)
    if as_json:
        rows = [plain(asdict(each)) for each in states]
        show_facts({"database": where.database, "migrations": rows, "missing_forms": missing})
    else:
        show_rows(_COLUMNS, [_cells(each) for each in states])
        show(f"{where.database}: {_counts(states)}; {_forms(missing)}")
    return DONE if is_done else FOUND


@migrate.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it does: rename_plan.")],
    *,
    directory: Directory = _HERE,
) -> int:
    """Write a new migration's file, with empty functions to fill in. Needs no database."""
    show(str(create_file(directory, name)))
    return DONE


@migrate.command("up")
def up(
    *,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="NAME", show_default=False, help="The last one to apply."),
    ] = None,
    directory: Directory = _HERE,
    dry_run: DryRun = False,
    wait: Wait = 60.0,
    operator: By = None,
    show_traceback: ShowTraceback = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Apply all pending migrations, the library's own first, in the order of their names.

    Run it again after it was interrupted: it continues. If another run is at work, it waits.
    """
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config, reads_users=False)

    async def work(found: Database) -> tuple[IndexReport | None, list[MigrationRun]]:
        migrations = _migrations(found, directory, operator, wait, as_json=as_json, verb="applied")
        ledger = LedgerDatabase.of(found, settings.collections, settings.users)
        report = await _raise_form(ledger, dry_run=dry_run)
        if report is not None and report.conflicts:
            return report, []
        return report, await migrations.up(to=to, dry_run=dry_run)

    report, runs = _told(lambda: where.run(work), show_traceback=show_traceback)
    conflicts = [] if report is None else [each.remedy for each in report.conflicts]
    for remedy in conflicts:
        note(f"remedy: {remedy}")
    _show_runs(where, runs, "apply", dry_run=dry_run, as_json=as_json)
    return FOUND if conflicts else DONE


@migrate.command("down")
def down(
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="NAME", show_default=False, help="Roll back all after this one."
        ),
    ] = None,
    directory: Directory = _HERE,
    dry_run: DryRun = False,
    wait: Wait = 60.0,
    operator: By = None,
    show_traceback: ShowTraceback = False,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Roll back the last migration, or all after --to. The library's own stay.

    Run it again with --to after it was interrupted: it continues.
    """
    where = Connecting.to(uri, database, timeout)

    async def work(found: Database) -> list[MigrationRun]:
        verb = "rolled back"
        migrations = _migrations(found, directory, operator, wait, as_json=as_json, verb=verb)
        return await migrations.down(to=to, dry_run=dry_run)

    runs = _told(lambda: where.run(work), show_traceback=show_traceback)
    _show_runs(where, runs, "roll back", dry_run=dry_run, as_json=as_json)
    return DONE


@migrate.command("resolve")
def resolve(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The migration.")],
    *,
    applied: Annotated[
        bool, typer.Option("--applied", help="It's applied, as the file now says.")
    ] = False,
    rolled_back: Annotated[bool, typer.Option("--rolled-back", help="It's not applied.")] = False,
    directory: Directory = _HERE,
    wait: Wait = 60.0,
    operator: By = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Write in the log that a migration was applied or rolled back by hand. Runs nothing.

    It also settles a changed file (--applied), and a missing one (--rolled-back).
    """
    if applied == rolled_back:
        raise typer.BadParameter("give --applied or --rolled-back")
    where = Connecting.to(uri, database, timeout)

    async def work(found: Database) -> str:
        migrations = _migrations(found, directory, operator, wait, as_json=as_json)
        return await migrations.resolve(name, "applied" if applied else "rolled back")

    resolved, state = where.run(work), "applied" if applied else "rolled back"
    if as_json:
        show_facts({"database": where.database, "migration": resolved, "state": state})
    else:
        show(f"{resolved}: {state}, by hand")
    return DONE


@migrate.command("reset")
def reset(
    *,
    database: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="The database, named again."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, drop all of its data.")] = False,
    directory: Directory = _HERE,
    wait: Wait = 60.0,
    operator: By = None,
    show_traceback: ShowTraceback = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    timeout: Timeout = 10.0,
) -> int:
    """Drop all data of a database for development, and apply all migrations to the empty one.

    Only a database that was made by credit-mongo init --development can be reset.
    """
    if database is None or not yes:
        raise typer.BadParameter("reset drops all data: give --database NAME and --yes")
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config, reads_users=False)

    async def work(found: Database) -> list[MigrationRun]:
        migrations = _migrations(found, directory, operator, wait, as_json=as_json, verb="applied")
        ledger = LedgerDatabase.of(found, settings.collections, settings.users)
        return await reset_database(ledger, migrations)

    runs = _told(lambda: where.run(work), show_traceback=show_traceback)
    _show_runs(where, runs, "apply", dry_run=False, as_json=as_json)
    return DONE


def _migrations(
    database: Database,
    directory: Path,
    operator: str | None,
    wait: float = 0,
    *,
    as_json: bool = True,
    verb: str = "",
) -> Migrations:
    def on_run(run: MigrationRun) -> None:
        if not as_json:
            show(f"{run.name}: {verb} in {run.seconds:.3f} s")
            sys.stdout.flush()

    options = Options(wait=wait, on_wait=lambda reason: note(f"waiting: {reason}"), on_run=on_run)
    name = operator or _system_user()
    return Migrations(database, directory, Operator(name, socket.gethostname()), options)


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"  # a container's user may have no name


async def _raise_form(ledger: LedgerDatabase, *, dry_run: bool) -> IndexReport | None:
    """Apply the library's own missing migrations, if the database has the ledger's settings."""
    rows = {row["_id"]: row for row in await stored_settings(ledger)}
    row = rows.get(ledger.names.transactions)
    missing = missing_forms(row) if row is not None else ()
    if not missing:
        return None
    for form in missing:
        note(f"{form.name}: {'would be applied' if dry_run else 'applying'}, as {form.purpose}")
    return await ensure_all(ledger, decimal_places=None, dry_run=dry_run)


def _told(run: Callable[[], _T], *, show_traceback: bool) -> _T:
    try:
        return run()
    except MigrationError as error:
        if show_traceback and error.__cause__ is not None:
            for line in traceback.format_exception(error.__cause__):
                sys.stderr.write(printable_lines(line))
        raise


def _show_runs(
    where: Connecting, runs: Sequence[MigrationRun], verb: str, *, dry_run: bool, as_json: bool
) -> None:
    if as_json:
        rows = [run._asdict() for run in runs]
        show_facts({"database": where.database, "dry_run": dry_run, "migrations": rows})
        return
    if dry_run:
        for run in runs:
            where_it_runs = "in a transaction" if run.in_transaction else "without a transaction"
            show(f"{run.name}: would be {_DONE[verb]} {where_it_runs}")
    counted = f"{len(runs)} migration{'' if len(runs) == 1 else 's'}" if runs else "nothing"
    done = f"{counted} to {verb}" if dry_run or not runs else f"{counted} done"
    show(f"{where.database}: {done}{' (dry run: nothing was written)' if dry_run else ''}")


def _cells(each: MigrationState) -> tuple[str | None, ...]:
    by = None if each.by is None else f"{each.by}@{each.host}"
    seconds = None if each.seconds is None else f"{each.seconds:.3f}"
    return (each.state, each.name, shown_moment(each.at), by, seconds)


def _counts(states: Sequence[MigrationState]) -> str:
    counts = Counter(each.state for each in states)
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no migrations"


def _forms(missing: Sequence[str] | None) -> str:
    if missing is None:
        return "no ledger's settings are stored here"
    if missing:
        return f"the ledger lacks {', '.join(missing)}: run credit-mongo migrate up"
    return f"the ledger's stored form is {FORM}, as this version writes it"
