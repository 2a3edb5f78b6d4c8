"""The command line with each role: permitted work is done, and other work gets a clear error."""

from __future__ import annotations

import asyncio
import json

import pytest

from credit_mongo import CreditLedger
from credit_mongo.cli import main
from tests.integration.access_control import GuardedReplicaSet, create_user_with
from tests.integration.promises import Client
from tests.integration.roles.grants import APP, OTHER, config
from tests.integration.studio_browser import opened


async def test_a_role_is_enough_and_a_user_without_it_gets_a_clear_error(
    guarded: GuardedReplicaSet, administrator: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is also clear for a database that does not exist or is not the role's."""
    await create_user_with(administrator, APP, "stranger", [], guarded.password)
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        granted = await ledger.grant("u", 5, action="gift", source="shop")
        hold = await ledger.place_hold("u", "work", amount=10)

    async def call(role: str, database: str, *arguments: str) -> tuple[int, str, str]:
        where = ("--uri", guarded.uri_of(role, APP), "--database", database)
        command, *more = arguments
        code = await asyncio.to_thread(main, (command, *where, *more))
        return (code, *capsys.readouterr())

    for role in ("creditReader", "creditRuntime"):
        code, output, errors = await call(role, APP, "balance", "u", "--json")
        assert (code, errors) == (0, "")
        assert json.loads(output)["credits"] == 55
        for reading in (("holds", "u"), ("users",), ("history", "u"), ("report",)):
            assert (await call(role, APP, *reading))[0] == 0
    for writing in (
        ("release", hold.hold_id),
        ("revoke", granted.transaction_id, "--action", "mistake"),
        ("overdraft", "u", "0"),
        ("grant", "u", "5", "--action", "gift", "--source", "shop"),
    ):
        assert (await call("creditRuntime", APP, *writing))[0] == 0
        assert (await call("creditReader", APP, *writing))[0] == 2
    assert (await call("creditReader", APP, "verify"))[0] == 0
    async with guarded.client_of("creditReader", APP) as client:
        await look_at_all_pages(client, hold.hold_id, granted.transaction_id)
    assert (await call("creditArchiver", APP, "archive", "--older-than", "1d"))[0] == 0
    erasing = ("erase", "--user", "u", "--requested-by", "Eve", "--yes")
    for role, database, arguments in (
        ("stranger", APP, ("balance", "u")),
        ("creditReader", OTHER, ("balance", "theirs")),
        ("creditReader", "ghost", ("balance", "u")),
        ("creditReader", APP, erasing),
    ):
        code, output, errors = await call(role, database, *arguments)
        assert (code, output, errors.count("\n")) == (2, "", 1), errors
        assert errors.endswith(
            "give the user a role that allows it: credit-mongo roles shows them\n"
        )
    assert (await call("creditEraser", APP, *erasing))[0] == 0


async def look_at_all_pages(client: Client, hold_id: str, transaction_id: str) -> None:
    """Studio reads nothing that the role for reading may not read."""
    async with CreditLedger(client[APP], config()) as ledger, opened(ledger) as browser:
        for path in (
            *("/", "/overview/figures", "/users", "/users?by=id&search=u", "/user?id=u"),
            *(f"/transaction?id={transaction_id}", f"/hold?id={hold_id}", "/holds"),
            *("/refused", "/audit-log", "/archives", "/verification", "/settings"),
        ):
            await browser.page(path)
