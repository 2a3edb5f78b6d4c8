"""Proves a backup: restores it into a scratch database, compares, verifies, and cleans up."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from credit_mongo.config import BACKUPS_COLLECTION
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import BackupError
from credit_mongo.maintenance.backup.restoring import Restored, restore
from credit_mongo.maintenance.progress import OnProgress
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["check_backup"]

_SUFFIX: Final = "_backup_check"
# MongoDB allows 63 bytes.
_LONGEST_NAME: Final = 63 - len(_SUFFIX)
_MARK: Final[Raw] = {"_id": "scratch"}


async def check_backup(
    database: AnyDatabase,
    place: object,
    *,
    to: str | datetime | None = None,
    key_file: object = None,
    audits: bool = True,
    on_progress: OnProgress | None = None,
) -> Restored:
    """Restore a backup into a scratch database beside ``database``, verify it, and drop it again.

    The arguments are those of ``restore``. The scratch database has the name of ``database`` with
    ``_backup_check`` behind it. If a run was killed, the next one drops what it has left. Only one
    run can be at work.

    Raises what ``restore`` raises; BackupError also if the scratch database's name is taken.
    """
    ledger = LedgerDatabase.of(database)
    name = f"{ledger.name.encode()[:_LONGEST_NAME].decode(errors='ignore')}{_SUFFIX}"
    scratch = ledger.client[name]
    own = LedgerDatabase.of(scratch)
    if (
        await own.collection_names()
        and await own[BACKUPS_COLLECTION].find_one(_MARK, {"_id": 1}) is None
    ):
        raise BackupError("", f"{name} exists, but is no scratch database: rename or drop it")
    await own.ensure({"dropDatabase": 1})
    try:
        await own[BACKUPS_COLLECTION].insert_one(dict(_MARK))
        return await restore(
            scratch, place, to=to, key_file=key_file, audits=audits, on_progress=on_progress
        )
    finally:
        await own.ensure({"dropDatabase": 1})
