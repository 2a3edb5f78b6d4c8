"""Whose role forbids it can't reset a database, not even half of it."""

from __future__ import annotations

from pathlib import Path

from credit_mongo.maintenance.migrations.development import mark_for_development
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.access_control import GuardedReplicaSet, create_user_with
from tests.integration.commands import run
from tests.integration.promises import Client
from tests.integration.roles.grants import APP


async def test_who_may_drop_only_some_collections_drops_none(
    guarded: GuardedReplicaSet, administrator: Client, tmp_path: Path
) -> None:
    """The server would refuse in the middle. Who may drop all of them resets the database."""
    app = administrator[APP]
    await app["secrets"].delete_many({})
    await mark_for_development(LedgerDatabase.of(app))
    await app["secrets"].insert_one({"_id": "secret"})
    some = [
        {"resource": {"db": APP, "collection": name}, "actions": actions}
        for name, actions in (
            ("ledger_settings", ["find"]),
            ("ledger_migrations", ["find", "insert", "update", "remove"]),
            ("secrets", ["find", "dropCollection"]),
        )
    ]
    await app.command({"createRole": "dropsSome", "privileges": some, "roles": []})
    await create_user_with(administrator, APP, "some", ["dropsSome"], guarded.password)
    await create_user_with(administrator, APP, "all", ["readWrite", "dbAdmin"], guarded.password)
    options = ("--database", APP, "--yes", "--directory", str(tmp_path))
    command = ("migrate", "reset", *options)
    code, output, errors = await run(*command, "--uri", guarded.uri_of("some", APP))
    assert (code, output) == (2, "")
    assert errors == f"error: this user's role may not drop the collections of {APP}\n"
    assert await app["secrets"].count_documents({}) == 1
    code, _, errors = await run(*command, "--uri", guarded.uri_of("all", APP))
    assert (code, errors) == (0, "")
    assert await app["secrets"].count_documents({}) == 0
