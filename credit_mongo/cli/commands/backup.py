"""``credit-mongo backup …``: back up a ledger, and prove that a backup can be restored."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.output import AsJson, note, progress, show, show_facts
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.backup.checking import check_backup
from credit_mongo.maintenance.backup.making import Backup, make_backup
from credit_mongo.maintenance.backup.reconciling import missing_since
from credit_mongo.maintenance.backup.restoring import Restored
from credit_mongo.printing import moment_to_seconds

__all__ = [
    "Acknowledged",
    "KeyFile",
    "NoAudit",
    "Place",
    "Until",
    "note_broken",
    "read_acknowledged",
    "show_missing",
]

_CREATE: Final = "create"


class _CreatesByDefault(TyperGroup):
    """``credit-mongo backup DIR`` is short for ``credit-mongo backup create DIR``."""

    @property
    def default_command(self) -> Any:
        """The command that runs if none is named."""
        return self.commands[_CREATE]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the name of the command if there is none."""
        if args and args[0] != "--help" and args[0] not in self.commands:
            args = [_CREATE, *args]
        return super().parse_args(ctx, args)


backup: Final[typer.Typer] = typer.Typer(
    name="backup",
    cls=_CreatesByDefault,
    help="Back up the ledger: backup DIR. Prove a backup: backup verify DIR.",
)
app.add_typer(backup, rich_help_panel="Maintenance")

Place = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="A directory, or a URL that fsspec knows, such as s3://bucket/path.",
        show_default=False,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--encrypt-with",
        metavar="KEYFILE",
        show_default=False,
        help="A file with the key: 64 hexadecimal digits, by openssl rand -hex 32.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="MOMENT",
        show_default=False,
        help="Up to this second, in UTC. Default: all that the last backup has.",
    ),
]
Acknowledged = Annotated[
    Path | None,
    typer.Option(
        "--reconcile",
        metavar="FILE",
        show_default=False,
        help="Then list what is missing of these: a transaction id or idempotency key a line.",
    ),
]
NoAudit = Annotated[
    bool, typer.Option("--no-audit", help="Auditing is disabled: expect no audit rows.")
]


@backup.command(_CREATE)
def create(
    place: Place,
    *,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what was committed since the last backup.")
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="AGE|DATE",
            show_default=False,
            help="Then remove what is not needed to restore any moment since: 30d, 12w, 6mo.",
        ),
    ] = None,
    encrypt_with: KeyFile = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Back up the ledger while it is used: everything that was committed up to one moment.

    backup DIR is short for backup create DIR. The backup appears in DIR when it is whole. A full
    one has the layout of mongodump, for mongorestore --gzip. A chain is a full backup and the
    incremental ones that follow it. Any moment of a chain can be restored. --keep removes whole
    chains only, and never the newest.
    """
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)
    options: dict[str, Any] = {
        "incremental": incremental,
        "keep": keep,
        "key_file": encrypt_with,
        "collections": settings.collections,
        "users": settings.users,
    }

    async def work(found: Database) -> Backup:
        with progress("Backing up", "documents") as advance:
            return await make_backup(found, place, **options, on_progress=advance)

    done = where.run_on_ledger(settings, work)
    note_broken(done.broken)
    if as_json:
        show_facts({"database": where.database, **done.to_dict()})
        return DONE
    what = "changes" if incremental else "documents"
    show(
        f"{where.database}: {done.name} shows the ledger at {moment_to_seconds(done.moment)} "
        f"({done.documents} {what}, {done.bytes} bytes)"
    )
    for name in done.removed:
        show(f"removed {name}")
    return DONE


@backup.command("verify")
def verify(
    place: Place,
    *,
    to: Until = None,
    encrypt_with: KeyFile = None,
    no_audit: NoAudit = False,
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="On a replica set that is started here; needs the extra 'local'."
        ),
    ] = False,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Prove that a backup can be restored: restore it into a scratch database, verify, clean up.

    The scratch database is on the same server, with _backup_check behind the database's name, or
    with --local on a replica set that is started for it. The restored books are compared with the
    backup, and verified. Exit code 1: they were wrong when they were backed up. Exit code 2: the
    backup can't be restored.
    """
    where = Connecting.to(uri, database, timeout)
    options: dict[str, Any] = {"to": to, "key_file": encrypt_with, "audits": not no_audit}

    async def work(found: Database) -> Restored:
        with progress("Restoring", "documents") as advance:
            return await check_backup(found, place, **options, on_progress=advance)

    if local:
        with _local_replica_set() as own:
            restored = Connecting.to(own, where.database, timeout).run(work)
    else:
        restored = where.run(work)
    note_broken(restored.broken)
    if as_json:
        show_facts({"database": where.database, **restored.to_dict()})
    else:
        checked = restored.verification
        show(
            f"{where.database}: {restored.backups[-1]} can be restored ({restored.documents} "
            f"documents, {restored.changes} changes), to {moment_to_seconds(restored.moment)}; "
            f"{checked.findings_total} findings of {checked.users} users"
        )
    return FOUND if restored.verification.findings_total else DONE


@backup.command("reconcile")
def reconcile(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    *,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """List what an application has acknowledged and a restored ledger lacks.

    The file has a transaction id or an idempotency key a line. Exit code 1: some are missing. A
    request that is repeated with such a key happens again.
    """
    acknowledged = read_acknowledged(file)
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config, reads_users=False)
    names, users = settings.collections, settings.users
    missing = where.run_on_ledger(
        settings, lambda found: missing_since(found, acknowledged, collections=names, users=users)
    )
    if as_json:
        show_facts({"database": where.database, "missing": missing})
    else:
        show_missing(missing, where.database)
    return FOUND if missing else DONE


def note_broken(broken: Sequence[str]) -> None:
    """Tell which other backups of a place can't be restored, a line each."""
    for each in broken:
        note(f"warning: {each}")


def read_acknowledged(file: Path) -> list[str]:
    """Read the lines of a file. Raises OSError and BadParameter."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file} is not text in UTF-8") from None
    # A key may have any character but a line end.
    return [line for line in text.replace("\r\n", "\n").split("\n") if line]


def show_missing(missing: list[str], database: str) -> None:
    """Print what is missing, a line each."""
    for each in missing:
        show(each)
    show(f"{database}: {len(missing)} of what was acknowledged are missing")


@contextlib.contextmanager
def _local_replica_set() -> Iterator[str]:
    """Keep a replica set running on this machine. Yields its URI."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        local = LocalReplicaSet()
        loop.run_until_complete(local.__aenter__())
        try:
            yield local.uri
        finally:
            loop.run_until_complete(local.__aexit__())
