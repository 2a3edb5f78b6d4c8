"""``credit-mongo roles``: print or create the database's least-privilege roles."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from pymongo.errors import OperationFailure

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, load_config, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.output import AsJson, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.errors import StorageError
from credit_mongo.maintenance.roles import Role, RoleChange, RoleReport, credit_roles, ensure_roles
from credit_mongo.storage.server_errors import UNAUTHORIZED

_COLUMNS: Final = ("state", "role")


@app.command("roles")
def roles(
    *,
    uri: Uri = None,
    database: DatabaseName = None,
    create: Annotated[
        bool,
        typer.Option("--create", help="Create them on the server, and correct those that differ."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --create: write nothing. Show what would change."),
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    timeout: Timeout = 10.0,
) -> int:
    """Print the database's least-privilege roles as commands for mongosh.

    That needs no server. With --create, the command creates them on the server. The URI's user
    needs the role userAdmin on the database. Run it as often as you like.
    """
    where = Connecting.to(uri, database, timeout)
    if not create:
        if dry_run:
            raise typer.BadParameter("--dry-run needs --create")
        given = None if config is None else load_config(config)
        names, users = (None, None) if given is None else (given.collections, given.users)
        _print(credit_roles(where.database, names, users), where.database, as_json=as_json)
        return DONE
    settings = settings_of(where, config)
    report = where.run(lambda found: _ensure(found, settings, dry_run=dry_run))
    if as_json:
        show_facts({"database": where.database, "dry_run": dry_run, **report.to_dict()})
    else:
        _show(report, where.database, dry_run=dry_run)
    return DONE


async def _ensure(database: Database, settings: CreditConfig, *, dry_run: bool) -> RoleReport:
    try:
        names, users = settings.collections, settings.users
        return await ensure_roles(database, names, users, dry_run=dry_run)
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        raise StorageError(
            "the server refused the command: Unauthorized (code 13); "
            "give the user the role userAdmin on the database"
        ) from None


def _print(wanted: tuple[Role, ...], database: str, *, as_json: bool) -> None:
    if as_json:
        described = [{"purpose": role.purpose, **role.create_command()} for role in wanted]
        show_facts({"database": database, "roles": described})
        return
    for role in wanted:
        show(f"// {role.name}: {role.purpose}")
        show(role.to_mongosh())


def _show(report: RoleReport, database: str, *, dry_run: bool) -> None:
    show_rows(_COLUMNS, [(change.state, _words(change)) for change in report.changes])
    counts = (
        f"{len(report.created)} created, {len(report.kept)} kept, {len(report.changed)} changed"
    )
    show(f"{database}: {counts}{' (dry run: nothing was written)' if dry_run else ''}")


def _words(change: RoleChange) -> str:
    if change.state != "changed":
        return change.role
    differences = [f"+ {each}" for each in change.added] + [f"- {each}" for each in change.removed]
    return f"{change.role}: {', '.join(differences) or 'inherits no other role'}"
