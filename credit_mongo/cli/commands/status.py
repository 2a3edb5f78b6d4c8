"""``credit-mongo status``: show the server, the collections and the indexes at a glance."""

from __future__ import annotations

from datetime import timedelta

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.ledgers import shown_moment
from credit_mongo.cli.output import AsJson, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.maintenance.indexes import IndexChange
from credit_mongo.maintenance.status import CollectionState, Status, status_of
from credit_mongo.storage.forms import FORM

_MEMBERS = ("member", "state", "behind")
_COLLECTIONS = ("collection", "documents", "data", "on disk")
_INDEXES = ("state", "kind", "what")
_FACTS = ("fact", "value")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_NOT_SEEN = "not known: the role may not see them"


@app.command("status", rich_help_panel="Maintenance")
def status(
    *,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Show the state of the database: replica set, connections, sizes, indexes, TTL lag.

    It writes nothing. Exit code 1: a collection, an index or a validator is missing or different,
    or something is in its way. To learn more, run credit-mongo init. Values that the role may not
    see are left out. Counts are the server's estimates. TTL lag is how long the oldest expired key
    is overdue.
    """
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)

    async def work(found: Database) -> Status:
        places = None if config is None else settings.decimal_places
        return await status_of(found, settings.collections, settings.users, decimal_places=places)

    found = where.run(work)
    if as_json:
        show_facts({"database": where.database, **found.to_dict()})
    else:
        _show(found, where.database)
    return DONE if found.is_ready else FOUND


def _show(found: Status, database: str) -> None:
    show_rows(_FACTS, _facts(found, database))
    members = [(each.host, each.state, _seconds(each.lag_seconds)) for each in found.members]
    kept = [_cells(each) for each in found.collections if each.exists]
    off = _wrong(found)
    for columns, rows in ((_MEMBERS, members), (_COLLECTIONS, kept), (_INDEXES, off)):
        if rows:
            show("")
            show_rows(columns, rows)
    if off:
        show("Run credit-mongo init to create what is missing. It says how to clear the way.")


def _facts(found: Status, database: str) -> list[tuple[str, str | None]]:
    report = found.indexes
    if report is None:
        indexes = _NOT_SEEN
    else:
        indexes = (
            f"{len(report.kept)} present, {len(report.created)} missing, "
            f"{len(report.changed)} different, {len(report.conflicts)} in the way"
        )
    return [
        ("database", database),
        ("server", f"MongoDB {found.server_version}"),
        ("replica set", found.replica_set or "none: a sharded cluster"),
        ("connections", _connections(found)),
        ("stored form", _stored_form(found)),
        ("indexes", indexes),
        ("users", _number(found.collections[0].documents)),
        ("oldest transaction", shown_moment(found.oldest_transaction_at)),
        ("TTL lag", _seconds(found.ttl_lag_seconds)),
    ]


def _connections(found: Status) -> str:
    counts = found.connections
    if counts is None:
        return "not known: the role clusterMonitor may see them"
    return f"{counts.open:,} open, {counts.active:,} active, {counts.available:,} more possible"


def _stored_form(found: Status) -> str:
    if found.missing_migrations is None:
        return _NOT_SEEN
    if found.missing_migrations:
        return f"lacks the migrations {', '.join(found.missing_migrations)}"
    return f"{FORM}, as this version writes it"


def _wrong(found: Status) -> list[tuple[str, str, str]]:
    report = found.indexes
    if report is None:
        # Of the indexes that the role may see, only these are known to be wrong.
        deleting = found.deleting_indexes or ()
        return [("in the way", "index", f"{each}: a TTL index: drop it") for each in deleting]
    states = (
        ("missing", report.created),
        ("different", report.changed),
        ("in the way", report.conflicts),
    )
    return [(state, each.kind, _words(each)) for state, changes in states for each in changes]


def _words(change: IndexChange) -> str:
    name = f".{change.name}" if change.name else ""
    return f"{change.collection}{name}{f': {change.reason}' if change.reason else ''}"


def _cells(state: CollectionState) -> tuple[str, str, str, str]:
    sizes = (_size(state.data_bytes), _size(state.stored_bytes))
    return (state.name, _number(state.documents), *sizes)


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    size = float(count)
    for unit in _UNITS[:-1]:
        if size < 1024:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    # As "1 day, 2:03:04", or without the days if there are none.
    return str(timedelta(seconds=round(seconds)))
