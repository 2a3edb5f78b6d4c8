"""The archive of lots and holds: what moves, what stays, and that all of it can still be proved."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from credit_mongo import HoldClosedError
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import Database, rows
from tests.integration.test_verify_lots import Bob, bob

__all__ = ["bob"]

ENDED = ("captured", "released", "expired")


async def ids_in(database: Database, collection: str) -> set[str]:
    return {str(row["_id"]) for row in await rows(database, collection)}


async def test_ended_holds_follow_their_captures_and_active_ones_stay(bob: Bob) -> None:
    """They can still be read, and a repeated capture changes nothing. The books stay proved."""
    before = {hold.hold_id: hold for hold in await bob.ledger.get_holds("bob")}
    planned = await archive(bob.database, older_than="3d", dry_run=True)
    done = await archive(bob.database, older_than="3d")
    assert (done.holds, planned.holds) == (3, 4)
    ended = {bob.holds[name] for name in ENDED}
    assert await ids_in(bob.database, "holds_archive") == ended
    assert await ids_in(bob.database, "holds") == {bob.holds["kept"]}
    assert {hold.hold_id: hold for hold in await bob.ledger.get_holds("bob")} == before
    assert (await verify(bob.database)).findings == ()

    again = await bob.ledger.capture_hold(bob.holds["captured"], amount=35)
    assert (again.cost, again.captured) == (0, 35)
    bob.clock.advance(timedelta(days=4))
    with pytest.raises(HoldClosedError):
        await bob.ledger.capture_hold(bob.holds["expired"], amount=40)
    captured = await bob.ledger.capture_hold(bob.holds["kept"], amount=60)
    assert captured.captured == 60
    assert (await verify(bob.database)).findings == ()
    older_than = bob.clock() + timedelta(hours=1)
    done = await archive(bob.database, older_than=older_than, hold_late_seconds=3600)
    assert done.holds == 1
    assert (await verify(bob.database)).findings == ()


async def test_a_hold_stays_while_it_may_be_captured_or_its_captures_are_not_archived(
    bob: Bob,
) -> None:
    """Late captures find it where it was."""
    everything = await ids_in(bob.database, "holds")
    only = await archive(bob.database, older_than="3d", kinds="holds")
    late = await archive(bob.database, older_than="3d", hold_late_seconds=20 * 86400.0)
    assert (only.holds, late.holds) == (0, 0)
    assert late.transactions
    assert await ids_in(bob.database, "holds") == everything
    assert (await archive(bob.database, older_than="3d", kinds="holds")).holds == 3


async def test_lots_are_proved_backwards_where_transactions_are_in_files(
    bob: Bob, tmp_path: Path
) -> None:
    """What files contain is not known, so the lots go back from the account. Holds stay."""
    done = await archive(bob.database, older_than="5d", directory=tmp_path)
    assert done.transactions
    assert done.holds == 0
    assert (await verify(bob.database)).findings == ()
    await bob.ledger.charge("bob", "post", amount=3)
    assert (await verify(bob.database)).findings == ()
    await bob.user({"$inc": {"creditExtras.lots.1.priority": 5}})
    codes = {finding.code for finding in (await verify(bob.database)).findings}
    assert codes == {"lot-changed"}


async def test_an_erasure_takes_archived_holds_too(bob: Bob) -> None:
    """Active, ended or archived: nothing of the user is left."""
    await archive(bob.database, older_than="3d")
    erasure = await bob.ledger.delete_user("bob")
    assert erasure.holds == 4
    for name in await bob.database.list_collection_names():
        assert all("'bob'" not in str(row) for row in await rows(bob.database, name)), name
