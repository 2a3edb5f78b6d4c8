"""Jobs and commands on accounts that stand on the application's own documents."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson import Binary, Int64, ObjectId
from bson.binary import UuidRepresentation
from pymongo.errors import WriteError

from credit_mongo import (
    UserExistsError,
    UserMapping,
    UserNotFoundError,
)
from credit_mongo.cli import main
from credit_mongo.maintenance.export.exporting import export_transactions
from credit_mongo.maintenance.roles import credit_roles
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.users import StoredUsers
from tests.integration.existing_users import (
    NAMES,
    PROFILE,
    Application,
    check_books,
)
from tests.integration.operations.accounts import NOW
from tests.integration.promises import Row


async def test_a_verification_finds_what_is_wrong_and_a_repair_settles_it(
    application: Application,
) -> None:
    """Findings have the names and ids of people. People without an account are ignored."""
    database, people = application.database, application.database["people"]
    off, stored = await application.add_person()
    fine, _ = await application.add_person()
    await application.add_person()
    async with application.ledger() as ledger:
        for user_id in (off, fine):
            await ledger.create_user(user_id, credits=50)
            await ledger.charge(user_id, "post")
    await people.update_one({"_id": stored}, {"$inc": {"tokenBalance": Int64(7)}})
    for user_ids in (None, [off], [fine]):
        found = await verify(database, user_ids=user_ids, **application.books, key_ttl_seconds=100)
        told = {(each.user_id, each.code) for each in found.findings}
        assert told == (set() if user_ids == [fine] else {(off, "balance-differs")})

    done = await repair(database, operator="o", reason="r", **application.books)
    assert [(each.user_id, each.state, each.amount) for each in done.corrections] == [
        (off, "added", 7)
    ]
    assert (await application.person(stored))["tokenBalance"] == 47
    assert (await application.person(stored))["email"] == PROFILE["email"]
    await check_books(application)
    await people.delete_one({"_id": stored})
    found = await verify(database, **application.books)
    assert {(each.user_id, each.code) for each in found.findings} == {(off, "user-missing")}
    await application.forget(off, stored)


async def test_a_repair_records_a_balance_from_before_the_ledger(isolated: Application) -> None:
    """Verification reports it until then. The user can be charged before and after."""
    charged, _ = await isolated.add_person(tokenBalance=500)
    waiting, stored = await isolated.add_person(tokenBalance=Int64(70))
    async with isolated.ledger() as ledger:
        with pytest.raises(UserExistsError):
            await ledger.create_user(charged, credits=5)
        assert (await ledger.charge(charged, "post")).balance_after == 490
        found = await verify(isolated.database, **isolated.books)
        assert {each.user_id for each in found.findings} == {charged, waiting}
        await repair(isolated.database, operator="o", reason="from before", **isolated.books)
        await check_books(isolated)
        assert (await isolated.person(stored))["tokenBalance"] == 70
        await ledger.charge(charged, "post")
        await ledger.charge(waiting, "post")
        assert await ledger.get_balance(waiting) == 60
    assert (await verify(isolated.database, **isolated.books)).findings_total == 0


async def test_documents_with_ids_of_another_type_are_counted(isolated: Application) -> None:
    """No walk through the people meets them. Those without credits are not accounts."""
    people = isolated.database["people"]
    await people.insert_many([{"_id": "a string"}, {"_id": 5, "tokenBalance": 5}])
    found = await verify(isolated.database, **isolated.books)
    assert [(each.code, each.found) for each in found.findings] == [("user-unusable", 1)]


@pytest.mark.parametrize("id_type", ["string", "objectId", "uuid"])
def test_the_ids_above_a_string_are_those_whose_text_is(id_type: Any) -> None:
    """This holds for strings that are no ids, so that a walk can continue after any of them."""
    users = StoredUsers(UserMapping(id_type=id_type), UuidRepresentation.STANDARD)
    texts = sorted(
        [str(ObjectId()) for _ in range(50)] + ["0" * 24, "f" * 24]
        if id_type == "objectId"
        else [str(uuid4()) for _ in range(50)] + [str(UUID(int=0)), str(UUID(int=2**128 - 1))]
    )
    odd = ["", "!", "A", "a", "g", "ff", "f" * 40, "0", texts[3] + "0", texts[3][:9], "é", "-"]
    for place in (*texts, *odd, None):
        condition = users.ids_above(place)
        above = [text for text in texts if place is None or text > place]
        if "$in" in condition:
            assert above == []
            continue
        stored = [users.id_of(text) for text in texts]
        low, high = condition.get("$gte", ""), condition.get("$lte")
        taken = [
            users.user_id_of({"_id": each})
            for each in stored
            if ("$gt" not in condition or each > condition["$gt"])
            and (each >= low if not isinstance(each, Binary) else bytes(each) >= bytes(low or b""))
            and (
                high is None
                or (each <= high if not isinstance(each, Binary) else bytes(each) <= bytes(high))
            )
        ]
        assert taken == above, place


async def test_an_export_finds_the_person_by_the_api_s_id(
    application: Application, tmp_path: Path
) -> None:
    """This holds with transactions or without. An unknown id gets an error."""
    user_id, _ = await application.add_person()
    path = tmp_path / "person.jsonl"
    where = {"format": "jsonl", "user_id": user_id, **application.where}
    assert (await export_transactions(application.database, path, **where)).transactions == 0
    async with application.ledger() as ledger:
        await ledger.create_user(user_id, credits=3)
    done = await export_transactions(application.database, path, overwrite=True, **where)
    assert done.transactions == 1
    assert json.loads(path.read_text())["user_id"] == user_id
    nobody, _ = application.new_id()
    with pytest.raises(UserNotFoundError):
        await export_transactions(
            application.database, tmp_path / "x", **{**where, "user_id": nobody}
        )


async def test_an_erasure_spares_an_account_reopened_meanwhile(
    isolated: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document itself has existed all the time."""
    monkeypatch.setattr("credit_mongo.maintenance.erase._TRANSACTIONS", 1)
    user_id, stored = await isolated.add_person()
    async with isolated.ledger() as ledger:
        await ledger.create_user(user_id, credits=50)
        for _ in range(3):
            await ledger.charge(user_id, "post")
        begun = asyncio.Event()
        opened = asyncio.Event()

        from credit_mongo.maintenance import erase

        first = erase._Erasing._erase_transactions

        async def after_opening(self: Any, history: Any, session: Any) -> Row:
            begun.set()
            await opened.wait()
            return await first(self, history, session)

        monkeypatch.setattr(erase._Erasing, "_erase_transactions", after_opening)
        erasing = asyncio.create_task(ledger.delete_user(user_id))
        await begun.wait()
        isolated.clock.now = NOW
        await ledger.create_user(user_id, credits=6)
        opened.set()
        assert (await erasing).transactions == 4
        assert await ledger.get_balance(user_id) == 6
    assert (await isolated.person(stored))["email"] == PROFILE["email"]
    await check_books(isolated)


async def test_the_validator_requires_integer_credits_but_not_an_account(
    isolated: Application,
) -> None:
    """The application inserts people as before. A balance that is not an integer is refused."""
    people = isolated.database["people"]
    report = await status_of(isolated.database, NAMES, isolated.users)
    assert report.is_ready
    assert "plan_1" in await people.index_information()
    await people.insert_one({"_id": ObjectId(), "email": "new@example.org"})
    for wrong in (5.0, -1, "5"):
        with pytest.raises(WriteError):
            await people.insert_one({"_id": ObjectId(), "tokenBalance": wrong})
    await people.insert_one({"_id": ObjectId(), "credits": 0.5, "tokenBalance": None})


async def test_the_commands_read_the_mapping_from_the_configuration(
    isolated: Application, replica_set_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The configuration is JSON, with other languages' names."""
    users = {
        "idType": "objectId",
        "credits": "tokenBalance",
        "seq": "tokenEntries",
        "membershipTier": "plan",
        "membershipExpiresAt": "planEnds",
        "updatedAt": "tokensChanged",
        "extras": "tokenParts",
    }
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "costs": {},
                "collections": {"users": "people"},
                "users": users,
                # The ledger below is years ahead of the server.
                "maxClockSkewSeconds": 10 * 365 * 86400,
            }
        )
    )
    people = [await isolated.add_person(plan=plan) for plan in ("free", "premium", "premium")]
    async with isolated.ledger() as ledger:
        for number, (user_id, _) in enumerate(people):
            await ledger.create_user(user_id, credits=number)

    async def call(*arguments: str) -> Any:
        where = (
            "--uri",
            replica_set_uri,
            "--database",
            isolated.database.name,
            "--config",
            str(path),
        )
        assert await asyncio.to_thread(main, (arguments[0], *where, "--json", *arguments[1:])) == 0
        return json.loads(capsys.readouterr().out)

    listed = (await call("users", "--tier", "premium", "--limit", "1"))["users"]
    assert [(each["user_id"], each["credits"]) for each in listed] == [(people[1][0], 1)]
    after = await call("users", "--cursor", people[1][0])
    assert [each["user_id"] for each in after["users"]] == [people[2][0]]
    assert [each["user_id"] for each in (await call("users", "--below", "1"))["users"]] == [
        people[0][0]
    ]
    assert (await call("balance", people[2][0]))["credits"] == 2
    assert (await call("verify"))["findings_total"] == 0
    assert (await call("status"))["is_ready"]
    assert not (await call("init"))["created"]
    done = await call("export", "--user", people[1][0], "--output", str(tmp_path / "x.csv"))
    assert done["transactions"] == 1
    erased = await call("erase", "--user", people[2][0], "--requested-by", "o", "--yes")
    assert erased["users"] == 1
    assert (await isolated.person(people[2][1]))["email"] == PROFILE["email"]
    roles = (await call("roles"))["roles"]
    [eraser] = [role for role in roles if role["createRole"] == "creditEraser"]
    [granted] = [p for p in eraser["privileges"] if p["resource"]["collection"] == "people"]
    assert "update" in granted["actions"]


def test_the_eraser_may_update_documents_only_where_they_are_kept() -> None:
    """The eraser's role has no more privileges than it needs."""
    for users, expected in ((None, False), (UserMapping(), True)):
        [eraser] = [r for r in credit_roles("app", None, users) if r.name == "creditEraser"]
        [on_users] = [p for p in eraser.privileges if p.collection == "users"]
        assert ("update" in on_users.actions) is expected
