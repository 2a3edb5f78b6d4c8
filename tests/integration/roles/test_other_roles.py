"""The reader, the eraser, the archiver and the setup role: each can do its work."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from datetime import timedelta
from pathlib import Path

import pytest
from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo import CreditLedger, UserNotFoundError
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.restoring import restore
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.testing.clocks import MovableClock
from tests.integration.access_control import UNAUTHORIZED, GuardedReplicaSet
from tests.integration.promises import Client, check_promises, rows
from tests.integration.roles.grants import APP, ROLES, check_unauthorized, config, dump

DAY = timedelta(days=1)


async def test_the_reader_can_read_all_and_a_ledger_of_it_writes_nothing(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Reads succeed. Each write is a StorageError, and nothing is written."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50, membership_tier="free")
        await ledger.charge("u", "post")
    before = await dump(administrator)
    async with (
        guarded.client_of("creditReader", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        assert await ledger.get_balance("u") == 40
        assert len(await ledger.get_history("u")) == len(await ledger.get_audit_log("u")) == 2
        assert (await ledger.quote("u", "post")).affordable
        for write in (
            ledger.charge("u", "post"),
            ledger.charge("u", "post", amount=1000),
            ledger.grant("u", 1, action="x", idempotency_key="k"),
            ledger.create_user("v"),
            ledger.upgrade_tier("u", "premium"),
        ):
            await check_unauthorized(write)
    assert await dump(administrator) == before


async def test_the_reader_can_verify_and_the_runtime_role_can_repair(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Verification only reads, and a correction is a transaction like any other."""
    async with (
        guarded.client_of("creditRuntime", APP) as runtime,
        guarded.client_of("creditReader", APP) as reader,
        CreditLedger(runtime[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        assert (await verify(reader[APP])).findings == ()
        await administrator[APP]["users"].update_one({"_id": "u"}, {"$inc": {"credits": 7}})
        [finding] = (await verify(reader[APP])).findings
        assert finding.user_id == "u"
        before = await dump(administrator)
        settle = functools.partial(repair, operator="ann", reason="a balance edited by hand")
        # The refusal is reported for each user, or raised at once.
        with contextlib.suppress(PyMongoError):
            assert not (await settle(reader[APP])).is_complete
        assert await dump(administrator) == before
        assert (await settle(runtime[APP])).is_complete
        assert (await verify(reader[APP])).findings == ()
        assert await ledger.get_balance("u") == 57


async def test_the_eraser_can_erase_and_the_runtime_role_can_not(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """The runtime role erases nobody. The eraser can do nothing else that a ledger does."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50, idempotency_key="k")
        await ledger.charge("u", "post", idempotency_key="l")
        await ledger.grant("u", 5, action="gift", source="gift")
        await ledger.place_hold("u", "post", amount=9)
        await ledger.create_user("v", credits=50)
        await ledger.place_hold("v", "post", amount=9)
        before = await dump(administrator)
        await check_unauthorized(ledger.delete_user("u"))
        assert await dump(administrator) == before
        async with (
            guarded.client_of("creditEraser", APP) as eraser,
            CreditLedger(eraser[APP], config()) as other,
        ):
            for write in (other.charge("v", "post"), other.create_user("w")):
                await check_unauthorized(write)
            assert await dump(administrator) == before
            erasure = await other.delete_user("u", requested_by="ann")
        assert (erasure.transactions, erasure.idempotency_records) == (3, 2)
        with pytest.raises(UserNotFoundError):
            await ledger.get_balance("u")
        assert await ledger.get_balance("v") == 50
    for name in ("users", "transactions", "audit_logs", "idempotency_records", "holds"):
        assert "'u'" not in str(await rows(administrator[APP], name))
    assert len(await rows(administrator[APP], "holds")) == 1
    await check_promises(administrator[APP])


async def test_the_archiver_can_archive_and_the_runtime_role_can_not(
    guarded: GuardedReplicaSet, administrator: Client, tmp_path: Path
) -> None:
    """This holds for collections and files. Charges archived meanwhile can still be refunded."""
    database = administrator[APP]
    clock = MovableClock()
    clock.advance(-2 * DAY)
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config(), clock=clock) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        charge = await ledger.charge("u", "post")
        hold = await ledger.place_hold("u", "post", amount=9)
        await ledger.capture_hold(hold.hold_id, amount=3)
        active = await ledger.place_hold("u", "post", amount=9, ttl=3 * DAY.total_seconds())
        clock.advance(2 * DAY)
        before = await dump(administrator)
        with pytest.raises(OperationFailure) as caught:
            await archive(client[APP], older_than="0h")
        assert caught.value.code == UNAUTHORIZED
        assert await dump(administrator) == before
        async with (
            guarded.client_of("creditArchiver", APP) as archiver,
            CreditLedger(archiver[APP], config()) as other,
        ):
            done = await archive(archiver[APP], older_than="0h")
            assert (done.transactions, done.audit_logs) == (3, 5)
            [archived] = await rows(database, "holds_archive")
            [left] = await rows(database, "holds")
            assert (str(archived["_id"]), str(left["_id"])) == (hold.hold_id, active.hold_id)
            assert (await ledger.get_hold(hold.hold_id)).status == "captured"
            await ledger.release_hold(active.hold_id)
            await ledger.refund("u", 1, action="sorry", transaction_id=charge.transaction_id)
            assert len(await ledger.get_history("u", include_archived=True)) == 4
            await asyncio.sleep(0.01)
            done = await archive(archiver[APP], older_than="0h", directory=tmp_path)
            assert (done.transactions, done.audit_logs) == (1, 2)
            assert await rows(database, "holds_archive") == [archived]
            for write in (other.charge("u", "post"), other.create_user("w")):
                await check_unauthorized(write)
        await ledger.charge("u", "post")
    assert (await verify(database)).findings == ()


async def test_only_the_setup_role_can_run_ensure_indexes(
    guarded: GuardedReplicaSet, administrator: Client, tmp_path: Path
) -> None:
    """The fixture ran it, and it can run again. Roles that may look find all as it should be."""
    before = await dump(administrator)
    for role in ROLES:
        async with guarded.client_of(role, APP) as client:
            ledger = CreditLedger(client[APP], config())
            if role in ("creditSetup", "creditBackup"):
                report = await ledger.ensure_indexes()
                assert len(report.kept) == len(report.changes)
            else:
                await check_unauthorized(ledger.ensure_indexes())
    assert await dump(administrator) == before


async def test_the_setup_role_can_change_a_ttl_and_add_a_validator(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Existing collections with documents are updated, too."""
    database = administrator[APP]
    await database.command({"collMod": "users", "validator": {}})
    await database.command(
        {
            "collMod": "idempotency_records",
            "index": {"name": "expiresAt_1", "expireAfterSeconds": 9},
        }
    )
    async with guarded.client_of("creditSetup", APP) as client:
        report = await CreditLedger(client[APP], config()).ensure_indexes()
    assert [change.name for change in (*report.created, *report.changed)] == [
        "validator",
        "expiresAt_1",
    ]
    assert not report.conflicts


async def test_backups_and_restores_need_no_more_than_their_roles(
    guarded: GuardedReplicaSet, administrator: Client, tmp_path: Path
) -> None:
    """Full and incremental; restored in place of what is there."""
    async with (
        guarded.client_of("creditRuntime", APP) as runtime,
        CreditLedger(runtime[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        async with guarded.client_of("creditBackup", APP) as client:
            await make_backup(client[APP], tmp_path)
            await ledger.charge("u", "post")
            await make_backup(client[APP], tmp_path, incremental=True)
    before = await administrator[APP]["users"].find().to_list()
    async with guarded.client_of("creditRestorer", APP) as client:
        restored = await restore(client[APP], tmp_path, replace=True)
    assert restored.verification.findings == ()
    assert await administrator[APP]["users"].find().to_list() == before
    assert await administrator[APP]["secrets"].count_documents({}) == 1
