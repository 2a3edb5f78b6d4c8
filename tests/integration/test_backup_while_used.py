"""Backups and restores hold what they promise, whatever else happens to the database meanwhile."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from credit_mongo.maintenance.backup import dumping
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.restoring import restore
from tests.integration.backups import contents, empty_database, fill
from tests.integration.promises import Client, Database


async def test_no_document_is_lost_if_the_last_one_read_is_deleted_between_snapshots(
    client: Client, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next snapshot begins with the document after it, which must not be passed over."""
    ledger = await fill(database)
    monkeypatch.setattr(dumping, "_BATCH", 3)
    read = dumping.Reading._in_snapshot
    lost: list[str] = []

    async def lose(
        self: dumping.Reading, collection: str, query: Any, last: Any
    ) -> AsyncGenerator[bytes, None]:
        async for batch in read(self, collection, query, last):
            yield batch
            if collection == "users" and not lost:
                lost.append(collection)
                await ledger.delete_user("user-2")
                raise OperationFailure("too old", 239)

    monkeypatch.setattr(dumping.Reading, "_in_snapshot", lose)
    await make_backup(database, tmp_path)
    assert lost
    async with empty_database(client) as other:
        assert (await restore(other, tmp_path)).verification.findings == ()
        assert await contents(other) == await contents(database)
