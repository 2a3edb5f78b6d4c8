"""TTL indexes that would delete the ledger's rows: setup, status and verification report them."""

from __future__ import annotations

import json
import re

import pytest

from credit_mongo import CollectionNames, CreditConfig, CreditLedger, UserMapping
from credit_mongo.maintenance.indexes import ensure_indexes
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import NAMES, Database
from tests.integration.test_indexes import INDEXES

CONFIG = CreditConfig(costs={"post": {"default": 10}})
ALL = [*NAMES.model_dump().values(), "ledger_settings"]


async def test_a_ttl_index_is_found_wherever_none_belongs(database: Database) -> None:
    """Setup, status and verification find it. The remedy is to drop it."""
    async with CreditLedger(database, CONFIG) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts
        await ledger.create_user("u", credits=5)
        assert (await verify(database)).findings_total == 0
        assert (await status_of(database)).is_ready
        for name in ("transactions", "audit_logs"):
            # As the archive creates them with its first rows.
            for index in INDEXES[name].values():
                await database[f"{name}_archive"].create_index(index)
        # In thirty years: nothing is deleted during the test.
        for name in ALL:
            await database[name].create_index("changedAt", expireAfterSeconds=10**9)
        wanted = {f"{name}.changedAt_1" for name in ALL}

        report = await ledger.ensure_indexes()
        assert {f"{each.collection}.{each.name}" for each in report.conflicts} == wanted
        assert all("TTL index" in each.reason for each in report.conflicts)
        state = await status_of(database)
        assert not state.is_ready
        assert set(state.deleting_indexes or ()) == wanted
        found = await verify(database)
        assert {each.code for each in found.findings} == {"rows-deleted"}
        assert {each.index for each in found.findings} == wanted
        assert found.findings_total == len(ALL)
        assert all(f"TTL index {each.index} makes" in each.detail for each in found.findings)

        for conflict in report.conflicts:
            remedy = re.fullmatch(r"db.getCollection\((.+)\).dropIndex\((.+)\)", conflict.remedy)
            assert remedy is not None
            await database[json.loads(remedy[1])].drop_index(json.loads(remedy[2]))
        assert not (await ledger.ensure_indexes()).conflicts
        assert (await verify(database)).findings_total == 0


async def test_where_rows_end_by_themselves_only_their_own_index_may_end_them(
    database: Database,
) -> None:
    """Keys and paid requests expire at ``expiresAt``, not an hour after they were made."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
        for name in ("idempotency_records", "paid_requests"):
            await database[name].create_index("createdAt", expireAfterSeconds=3600)
        found = await verify(database)
    assert [each.index for each in found.findings] == [
        "idempotency_records.createdAt_1",
        "paid_requests.createdAt_1",
    ]


@pytest.mark.parametrize("partial", [False, True])
async def test_the_application_s_users_may_end_in_part(
    database: Database, *, partial: bool
) -> None:
    """For example, unconfirmed sign-ups may expire. An index on all users would delete accounts."""
    names, users = CollectionNames(users="people"), UserMapping(credits="balance")
    await ensure_indexes(database, names, users)
    index = {"key": {"signedUp": 1}, "name": "signedUp_1", "expireAfterSeconds": 10**9}
    if partial:
        index["partialFilterExpression"] = {"confirmed": False}
    await database.command({"createIndexes": "people", "indexes": [index]})
    report = await ensure_indexes(database, names, users)
    found = await verify(database, collections=names, users=users)
    wanted = [] if partial else ["people.signedUp_1"]
    assert [f"{each.collection}.{each.name}" for each in report.conflicts] == wanted
    assert [each.index for each in found.findings] == wanted
    assert (await status_of(database, names, users)).deleting_indexes == tuple(wanted)
