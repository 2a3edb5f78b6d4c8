"""Studio's actions need the runtime role. Without it they are absent."""

from __future__ import annotations

import pytest

from credit_mongo import CreditLedger
from tests.integration.access_control import GuardedReplicaSet
from tests.integration.promises import Client
from tests.integration.roles.grants import APP, config
from tests.integration.studio_browser import opened, text_of
from tests.integration.studio_forms import Desk, hidden_of


async def test_the_runtime_role_may_act(guarded: GuardedReplicaSet) -> None:
    """It has all that an action needs."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
        opened(ledger) as browser,
    ):
        await ledger.create_user("bob", credits=100)
        assert '"/grant?user=bob"' in await browser.page("/user", id="bob")
        assert "Balance 100 → 105" in await Desk(browser, "/grant", user="bob").do(amount="5")


async def test_the_reader_s_role_sees_no_actions(guarded: GuardedReplicaSet) -> None:
    """The pages say which right is missing, and which role has it."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("bob", credits=100)
    async with (
        guarded.client_of("creditReader", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
        opened(ledger) as browser,
    ):
        assert '"/grant?' not in await browser.page("/user", id="bob")
        assert "No backup was noted yet" in text_of(await browser.page("/archives"))
        found = await browser.get("/grant", user="bob")
        assert found.status_code == 403
        assert "lacks" in text_of(found.text)
        assert "creditRuntime" in text_of(found.text)


async def test_a_right_that_is_taken_away_meanwhile_is_missed(
    guarded: GuardedReplicaSet, administrator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Studio asks for its rights every half minute. Between that, the server refuses."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
        opened(ledger) as browser,
    ):
        await ledger.create_user("bob", credits=100)
        desk = Desk(browser, "/grant", user="bob")
        preview = await desk.preview(amount="5")
        await administrator[APP].command(
            {"grantRolesToUser": "creditRuntime", "roles": ["creditReader"]}
        )
        await administrator[APP].command(
            {"revokeRolesFromUser": "creditRuntime", "roles": ["creditRuntime"]}
        )
        refused = await browser.send("/grant", hidden_of(preview.text, "confirm"))
        assert refused.status_code == 403
        assert "Nothing was changed" in text_of(refused.text)
        assert (await ledger.get_user("bob")).credits == 100
